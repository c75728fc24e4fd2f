"""Lessons, through the folder that the reading step leaves behind."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from brd import recipe
from brd.composing.compose import compose_lessons, compose_original, steps_for
from brd.composing.documents import lessons
from brd.composing.packing import TokenRows
from brd.errors import BrdError
from brd.reading.reader import Readings, read
from brd.teachers.teacher import Answer

ORDERED = "Mira Okafor sailed to Oslo. Nobody saw her leave the pier. The ferry was late again."


class Scripted:
    """A teacher whose answers are written down: an entity list where Oslo occurs, else something malformed."""

    context_length = 10_000

    def __init__(self) -> None:
        self.asked: list[str] = []

    def identity(self) -> dict[str, str]:
        return {"model": "scripted"}

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def answer(
        self, prefix: str, suffixes: Sequence[str], *, stop: Sequence[str], max_new_tokens: int
    ) -> Iterator[tuple[int, Answer]]:
        for index in reversed(range(len(suffixes))):
            self.asked.append(suffixes[index])
            sentence = suffixes[index].removeprefix("Sentence: ").split("\n")[0]
            if suffixes[index].endswith("Entities:"):
                text = " Oslo (location: a city); Bergen (location)" if "Oslo" in sentence else " none"
                text = "garbage" if "ferry" in sentence else text
            else:
                text = f" What does the sentence say?\nAnswer: {sentence}" if "Oslo" in sentence else " Why?\nAnswer: x"
            yield index, Answer(text, 5, 5, True)

    def close(self) -> None:
        pass


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., tuple[recipe.Recipe, Readings, Scripted]]:
    def make(*overrides: str, paragraphs: int = 12) -> tuple[recipe.Recipe, Readings, Scripted]:
        text = "\n\n".join(f"{ORDERED}\nA second paragraph of document {n} stands here." for n in range(paragraphs))
        (tmp_path / "corpus.txt").write_text(text, encoding="utf-8")
        path = tmp_path / "r.yaml"
        path.write_text("name: r\ntext: {source: corpus.txt, layout: line, held_out: 0.3}\n", encoding="utf-8")
        loaded = recipe.load(str(path), list(overrides))
        teacher = Scripted()
        read(loaded, tmp_path / "readings", teacher)
        return loaded, Readings(loaded, tmp_path / "readings"), teacher

    return make


def test_a_paragraphs_lesson_holds_its_sentences_in_order_with_usable_readings_only(corpus: Any) -> None:
    loaded, readings, _ = corpus()
    found = list(lessons(loaded, readings))
    ner = next(x for x in found if x.part == "ner" and "Oslo" in x.text)
    assert ner.text == (
        "Mira Okafor sailed to Oslo.\n\nEntities: Oslo (location: a city)\n\nNobody saw her leave the pier.\n\n"
        "Entities: none\n\nThe ferry was late again."
    )
    assert [ner.text[a:b] for a, b in ner.answers] == [" Oslo (location: a city)", " none"]
    assert any(x.part == "original" and x.text == ORDERED for x in found)
    assert Counter(x.part for x in found)["ner"] == Counter(x.part for x in found)["original"]


def test_the_order_follows_the_seed_and_only_the_seed(corpus: Any) -> None:
    loaded, readings, _ = corpus()
    again = list(lessons(loaded, readings))
    assert again == list(lessons(loaded, readings))
    other = list(lessons(recipe.changed(loaded, {"seed": 1}), readings))
    assert again != other
    assert Counter(again) == Counter(other)


def test_the_mix_takes_parts_more_or_less_often(corpus: Any) -> None:
    loaded, readings, _ = corpus("composing.mix={ner: 0, original: 2.5}")
    parts = Counter(x.part for x in lessons(loaded, readings))
    whole = sum(not p.held_out for p in readings.paragraphs)
    assert parts["ner"] == 0
    assert parts["original"] == 2 * whole + round(whole / 2)


def test_sentence_level_lessons_are_one_sentence_each(corpus: Any) -> None:
    loaded, readings, _ = corpus("composing.level=sentence")
    found = [x for x in lessons(loaded, readings) if x.part == "ner"]
    assert max(len(x.answers) for x in found) == 1
    assert any(x.text == "The ferry was late again." for x in found)


def test_unverified_readings_are_taught_as_written_where_the_recipe_says_so(corpus: Any) -> None:
    loaded, readings, _ = corpus("composing.verified_only=false")
    assert any("The ferry was late again.\n\nEntities: garbage" in x.text for x in lessons(loaded, readings))


def test_held_out_documents_are_in_no_lesson_and_in_no_original_text(
    corpus: Any, tmp_path: Path, tokenizer: Any
) -> None:
    loaded, readings, _ = corpus("reading.sentences=8")
    held_out = [p.text for p in readings.paragraphs if p.held_out and "document" in p.text]
    assert held_out
    rows = steps_for(3, loaded) * loaded.training.rows_per_step
    compose_original(loaded, readings, tokenizer, tmp_path / "further", rows)
    tokens = TokenRows(tmp_path / "further")
    text = "".join(tokenizer.decode(tokens[n]) for n in range(len(tokens)))
    trained = " ".join(x.text for x in lessons(loaded, readings))
    for paragraph in held_out:
        assert paragraph not in text
        assert paragraph not in trained
    assert any(x.text in held_out for x in lessons(loaded, readings, held_out=True))


def test_nothing_is_asked_twice(corpus: Any, tmp_path: Path) -> None:
    _, _, first = corpus("reading.sentences=8")
    # Every document has the same three first sentences: they are asked once.
    assert len(first.asked) == len(set(first.asked))
    _, _, second = corpus("reading.sentences=8")
    assert second.asked == []
    _, _, third = corpus("reading.sentences=20")
    assert third.asked
    assert not set(third.asked) & set(first.asked)
    _, readings, fourth = corpus("reading.sentences=20", "reading.drop_bad_entities=false")
    assert fourth.asked == []
    assert readings.get("ner", "Mira Okafor sailed to Oslo.").verdict == "rejected"


def test_a_separator_that_stands_inside_readings_is_refused(corpus: Any, tmp_path: Path, tokenizer: Any) -> None:
    loaded, readings, _ = corpus('composing.separator="\\n"')
    with pytest.raises(BrdError, match=r"composing.separator"):
        compose_lessons(loaded, readings, tokenizer, tmp_path / "brd")


def test_a_corpus_without_a_held_out_document_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("Only one document is in this corpus.\n", encoding="utf-8")
    (tmp_path / "r.yaml").write_text("name: r\ntext: {source: one.txt}\n", encoding="utf-8")
    with pytest.raises(BrdError, match=r"held-out part.*1 document"):
        read(recipe.load(str(tmp_path / "r.yaml")), tmp_path / "readings", Scripted())
