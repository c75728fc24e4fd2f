"""Runs that are read in no time: a teacher whose answers a test writes."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from brd.reading.reader import read
from brd.recipe import Recipe
from brd.run import RunFolder, write_json
from brd.teachers.teacher import Answer


class Scripted:
    """Answers a sentence with ``write(behavior, sentence)``; the token limit is reached at a character ``$``."""

    context_length = 1000

    def __init__(self, write: Callable[[str, str], str]) -> None:
        self._write = write
        self.asked = 0

    def identity(self) -> dict[str, str]:
        return {"model": "scripted"}

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def answer(
        self, prefix: str, suffixes: Sequence[str], *, stop: Sequence[str], max_new_tokens: int
    ) -> Iterator[tuple[int, Answer]]:
        for index, suffix in enumerate(suffixes):
            sentence, _, cue = suffix.removeprefix("Sentence: ").rpartition("\n")
            self.asked += 1
            text = self._write({"Entities:": "ner", "Question:": "qra"}.get(cue, cue), sentence)
            yield index, Answer(text.rstrip("$"), 9, 9, finished=not text.endswith("$"))

    def close(self) -> None:
        pass


def a_recipe(folder: Path, sentences: Sequence[str], **reading: Any) -> Recipe:
    """A recipe that reads these sentences, each a source text of its own, whatever lies in other run folders."""
    folder.mkdir(exist_ok=True)
    (folder / "corpus.txt").write_text("\n\n".join(sentences), encoding="utf-8")
    text = {"source": str(folder / "corpus.txt"), "layout": "line", "min_characters": 1, "held_out": 0.3}
    return Recipe.model_validate(
        {
            "name": "scripted",
            "text": text,
            "reading": {"sentences": 10**6, "held_out_sentences": 10**6, "known": [], **reading},
        }
    )


def a_run(folder: Path, recipe: Recipe, teacher: Scripted) -> Path:
    """The run folder of a recipe that was read to its end."""
    RunFolder(folder / "run", recipe)
    read(recipe, folder / "run" / "readings", teacher)
    write_json(folder / "run" / "steps" / "read.json", {})
    return folder / "run"
