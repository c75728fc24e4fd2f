"""Lessons, through the folder that the reading step leaves behind."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brd import recipe
from brd.composing.compose import compose, compose_healing, compose_lessons, compose_original, steps_for
from brd.composing.documents import answer_of, lessons, taught
from brd.composing.packing import TokenRows
from brd.errors import BrdError
from brd.reading.chosen import part_of
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


def test_a_shuffled_arm_has_the_same_readings_and_no_sentence_keeps_its_own(tmp_path: Path) -> None:
    names = [f"Place{n}" for n in "ABCDEFGHIJKLMNOP"]
    text = "\n\n".join(f"Mira went to {name} by sea." for name in names)
    (tmp_path / "corpus.txt").write_text(text, encoding="utf-8")
    path = tmp_path / "r.yaml"
    path.write_text("name: r\ntext: {source: corpus.txt, layout: line, held_out: 0.2}\n", encoding="utf-8")

    class Namer(Scripted):
        def answer(self, prefix: str, suffixes: Sequence[str], **_: Any) -> Iterator[tuple[int, Answer]]:
            for index, suffix in enumerate(suffixes):
                name = suffix.split(" by sea")[0].split()[-1]
                text = f" {name} (location)" if suffix.endswith("Entities:") else f" Where to?\nAnswer: To {name}."
                yield index, Answer(text, 5, 5, True)

    loaded = recipe.load(str(path), ["composing.shuffle_readings=true"])
    read(loaded, tmp_path / "readings", Namer())
    readings = Readings(loaded, tmp_path / "readings")
    plain = list(lessons(recipe.changed(loaded, {"composing.shuffle_readings": False}), readings))
    shuffled = list(lessons(loaded, readings))

    def answers(found: list[Any]) -> list[str]:
        return sorted(x.text[a:b] for x in found for a, b in x.answers)

    assert answers(plain) == answers(shuffled) != []
    for lesson in shuffled:
        for a, b in lesson.answers:
            assert lesson.text.split(" by sea")[0].split()[-1] not in lesson.text[a:b]
    assert shuffled == list(lessons(loaded, readings))

    # Also where many readings are the same: whoever had "none" gets another, as long as at most half have it.
    class Sparse(Namer):
        def answer(self, prefix: str, suffixes: Sequence[str], **_: Any) -> Iterator[tuple[int, Answer]]:
            for index, found in super().answer(prefix, suffixes):
                yield index, Answer(" none", 5, 5, True) if index % 5 in (1, 3) and "(" in found.text else found

        def identity(self) -> dict[str, str]:
            return {"model": "sparse"}

    read(loaded, tmp_path / "sparse", Sparse())
    sparse = Readings(loaded, tmp_path / "sparse")
    own = {p.text: answer_of(sparse, "ner", p, 0, loaded.composing) for p in sparse.paragraphs}
    assert sum(said == " none" for said in own.values()) > 4
    given = [
        (x.text.split("\n\n")[0], x.text[a:b]) for x in lessons(loaded, sparse) if x.part == "ner" for a, b in x.answers
    ]
    assert all(own[sentence] != said for sentence, said in given)
    held_out = list(lessons(loaded, readings, held_out=True))
    assert all(x.text.split(" by sea")[0].split()[-1] in x.text[a:b] for x in held_out for a, b in x.answers)


def test_lessons_of_the_first_sentences_only_and_the_same_text_again(
    corpus: Any, tokenizer: Any, tmp_path: Path
) -> None:
    loaded, readings, _ = corpus("composing.sentences=5")
    few = [x for x in lessons(loaded, readings) if x.part == "original"]
    assert [p.text for p in taught(loaded, readings)] == [p.text for p in readings.paragraphs if not p.held_out][:3]
    assert len(few) == 3
    meta = compose(loaded, "same", readings, tokenizer, tmp_path / "same", 40)
    rows = TokenRows(tmp_path / "same")
    stream = np.concatenate([rows[n] for n in range(len(rows))])
    once = tokenizer.eos_token.join(p.text for p in taught(loaded, readings)) + tokenizer.eos_token
    assert tokenizer.decode(stream[: meta["unique_tokens"]]) == once
    assert meta["passes"] > 2


def test_the_healing_part_is_read_by_nobody_and_must_suffice(tmp_path: Path, tokenizer: Any) -> None:
    text = "\n\n".join(f"Document {n} has a sentence about harbours and ships." for n in range(60))
    (tmp_path / "corpus.txt").write_text(text, encoding="utf-8")
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: r\ntext: {source: corpus.txt, layout: line, held_out: 0.2, healing: 0.4}\ncomposing: {row_tokens: 16}\n"
        "healing: {most_tokens: 64, cooling_tokens: 32}\n",
        encoding="utf-8",
    )
    loaded = recipe.load(str(path))
    read(loaded, tmp_path / "readings", Scripted())
    readings = Readings(loaded, tmp_path / "readings")
    parts = {part_of(p.document, loaded.text) for p in readings.paragraphs}
    assert parts == {"train", "held_out"}
    compose(loaded, "original", readings, tokenizer, tmp_path / "further", 8)
    compose_healing(loaded, tokenizer, tmp_path / "healing")

    def documents(folder: Path) -> set[str]:
        rows = TokenRows(folder)
        joined = tokenizer.decode(np.concatenate([rows[n] for n in range(len(rows))]))
        return {f"corpus.txt#{n}" for n in range(60) if f"Document {n} has a sentence about harbours" in joined}

    assert {part_of(d, loaded.text) for d in documents(tmp_path / "further")} == {"train"}
    for name, part in (("heating", "healing"), ("cooling", "healing"), ("watched", "held_out")):
        assert {part_of(d, loaded.text) for d in documents(tmp_path / "healing" / name)} == {part}
    with pytest.raises(BrdError, match=r"text\.healing: the healing part .* has less text"):
        compose_healing(recipe.changed(loaded, {"healing.most_tokens": 5000}), tokenizer, tmp_path / "too_much")
