"""A run whose step read was run, with a teacher whose answers are written down; and what is expected of a command."""

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from brd import recipe as recipes
from brd.console import Console
from brd.pipeline import Pipeline
from brd.reading.chosen import ReadParagraph
from brd.reading.reader import Readings
from brd.reading.store import Reading
from brd.run import RunFolder
from brd.teachers.teacher import Answer

Brd = Callable[..., subprocess.CompletedProcess[str]]

# Line breaks, quotes, separators and marks that some reader of some format could take for its own.
DOCUMENT = (
    'Mira Okafor "sailed" to Oslo with \\n and <b>{x}</b> | in her bag.\nNobody saw her, said the man in Bergen: '
    "“naïve” \u2028 or not \x85 so.\n\n"
    "The ferry to Oslo was late again.  Document {n} ends with a 🚢 and a\ttab."
)


class Scripted:
    """Answers that are verified where Oslo stands in the sentence, malformed and rejected ones elsewhere."""

    context_length = 10_000

    def __init__(self, asked: list[str]) -> None:
        self._asked = asked

    def identity(self) -> dict[str, str]:
        return {"model": "/home/somebody/models/scripted.gguf", "decoding": "greedy"}

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def answer(
        self, prefix: str, suffixes: Sequence[str], *, stop: Sequence[str], max_new_tokens: int
    ) -> Iterator[tuple[int, Answer]]:
        for index in reversed(range(len(suffixes))):
            self._asked.append(suffixes[index])
            sentence = suffixes[index].removeprefix("Sentence: ").split("\n")[0]
            if suffixes[index].endswith("Entities:"):
                text = ' Oslo (location: a "city" \u2028 🚢); Bergen (location)' if "Oslo" in sentence else " none"
                text = "garbage\\n {" if "ferry" in sentence else text
            else:
                text = f" What does the sentence say?\nAnswer: {sentence}" if "Oslo" in sentence else " Why?\nAnswer: x"
            yield index, Answer(text, 5, 5, True)

    def close(self) -> None:
        pass


def recipe_in(folder: Path, **sections: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": DOCUMENT.replace("{n}", str(n))}) for n in range(12)]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    tree = {
        "name": "small",
        "text": {"source": "corpus.jsonl", "layout": "blank_line", "held_out": 0.3},
        "composing": {"row_tokens": 64},
        **sections,
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder / "small.yaml"


def read_into(path: Path, recipe: Path, *overrides: str) -> Path:
    """A run folder whose step read was run, with the scripted teacher."""
    loaded = recipes.load(str(recipe), list(overrides))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("brd.teachers.LazyTeacher", lambda _: Scripted([]))
        Pipeline(loaded, RunFolder(path, loaded), Console()).read()
    return path


def everything(run: Path, *parts: bool) -> list[tuple[ReadParagraph, int, Reading]]:
    readings = Readings(recipes.load(str(run / "recipe.yaml")), run / "readings")
    return [found for part in parts or (False, True) for found in readings.all(part)]


def ok(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def failed(done: subprocess.CompletedProcess[str], *words: str) -> None:
    lines = [line for line in done.stderr.splitlines() if line.startswith("brd: ")]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]
