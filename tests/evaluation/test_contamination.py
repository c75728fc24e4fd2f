"""Overlap of tasks and corpus: against a plain reference, on the edges of words and batches, and from every source."""

import json
import re
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brd.errors import BrdError
from brd.evaluation.contamination import Match, TaskItem, TaskOverlap, corpus_texts, find_overlap, item_texts
from brd.reading.parquet import write_table
from brd.reading.store import Reading, Store
from brd.sections.text import Text
from brd.text import ngrams

Grams = dict[tuple[str, ...], str]

WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen".split()
FOX = "the quick brown fox jumps over the lazy dog while nobody else looks on"
READING = Reading(
    key="", document="a.txt", paragraph=3, sentence=1, start=0, end=5, text="", behavior="qra", raw="", finished=True,
    content=None, verdict="malformed", reason="", parts=0, parts_verified=0, teacher="t", prompt_hash="p",
    prompt_tokens=9, new_tokens=2,
)  # fmt: skip


def item(*texts: str, name: str = "0", task: str = "t") -> TaskItem:
    return TaskItem(task, name, texts)


def flagged(items: list[TaskItem], *corpus: str, n: int = 13, short: int = 8) -> dict[str, Match]:
    pairs = [(f"d{number}", text) for number, text in enumerate(corpus)]
    return find_overlap(items, pairs, n, short)["t"].flagged


def words_of(text: str) -> list[str]:
    return [word for word in re.split(r"[\W_]+", text.casefold()) if word]


def grams_of(text: str, n: int, short: int) -> list[tuple[str, ...]]:
    words = words_of(text)
    if len(words) < n:
        return [tuple(words)] if len(words) >= short else []
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def reference(items: list[TaskItem], corpus: list[tuple[str, str]], n: int, short: int) -> dict[str, TaskOverlap]:
    """The same result from sets of tuples, all of the corpus at once."""
    documents: list[tuple[str, list[str]]] = []
    for where, text in corpus:
        if not documents or documents[-1][0] != where:
            documents.append((where, []))
        documents[-1][1].extend(words_of(text))
    first: Grams = {}
    for where, words in documents:
        for length in range(1, n + 1):
            for i in range(len(words) - length + 1):
                first.setdefault(tuple(words[i : i + length]), where)
    result: dict[str, TaskOverlap] = {}
    for task in dict.fromkeys(i.task for i in items):
        grams = {i.id: [g for t in i.texts for g in grams_of(t, n, short)] for i in items if i.task == task}
        matches = {}
        for name, own in grams.items():
            if found := [g for g in own if g in first]:
                example = max(found, key=len)
                matches[name] = Match(name, len(found) / len(own), " ".join(example), first[example])
        compared = sum(bool(own) for own in grams.values())
        result[task] = TaskOverlap(len(grams), compared, len(grams) - compared, matches)
    return result


SMALL = st.lists(st.sampled_from("abc"), max_size=12).map(" ".join)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[TaskItem], list[tuple[str, str]], int, int, int]:
    fields = st.lists(SMALL, max_size=3).map(tuple)
    texts = draw(st.lists(st.tuples(st.sampled_from("st"), fields), max_size=5))
    items = [TaskItem(task, str(number), fields) for number, (task, fields) in enumerate(texts)]
    corpus = draw(st.lists(st.tuples(st.sampled_from("xyz"), SMALL), max_size=6))
    return items, corpus, draw(st.integers(2, 6)), draw(st.integers(1, 7)), draw(st.sampled_from([1, 4, 2**16]))


@settings(max_examples=300, deadline=None)
@given(cases())
def test_equals_the_reference(case: tuple[list[TaskItem], list[tuple[str, str]], int, int, int]) -> None:
    items, corpus, n, short, batch = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "BATCH", batch)
        patch.setattr(ngrams, "PIECE", batch)
        assert find_overlap(items, iter(corpus), n, short) == reference(items, corpus, n, short)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_collisions_change_nothing(case: tuple[list[TaskItem], list[tuple[str, str]], int, int, int]) -> None:
    items, corpus, n, short, _ = case

    class Same:
        def integers(self, *_: object, size: int, dtype: type) -> np.ndarray:
            return np.full(size, 7, dtype=dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams.np, "random", SimpleNamespace(default_rng=lambda _: Same()))
        assert find_overlap(items, corpus, n, short) == reference(items, corpus, n, short)


@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=120), st.text(max_size=40), st.text(max_size=40), st.integers(2, 5), st.sampled_from([1, 2**18])
)
def test_a_field_that_stands_in_a_text_is_flagged(field: str, before: str, after: str, n: int, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "PIECE", piece)
        found = find_overlap([item(field)], [("d", f"{before} {field}\n{after}")], n, short=1)["t"]
    assert found.compared == bool(words_of(field))
    assert [m.share for m in found.flagged.values()] == [1.0] * found.compared


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=20), st.text(max_size=300))
def test_a_corpus_without_the_words_flags_nothing(words: list[str], text: str) -> None:
    other = " ".join(word for word in words_of(text) if word not in words)
    assert not flagged([item(" ".join(words))], other, n=2, short=1)


@settings(deadline=None)
@given(st.text(st.characters(codec="ascii"), max_size=60))
def test_words_of_plain_text_are_those_of_any_text(text: str) -> None:
    assert [*ngrams.words_of(text), "é"] == ngrams.words_of(f"{text} é") == [*words_of(text), "é"]


def test_case_punctuation_and_line_breaks_do_not_hide_a_match() -> None:
    shouted = FOX.upper().replace(" ", " —\n")
    match = flagged([item(FOX)], f"He wrote: “{shouted}”!", "none")["0"]
    assert match == Match("0", 1.0, " ".join(FOX.split()[:13]), "d0")
    # str.lower gives the last letter two forms here.
    assert flagged([item("Η ΟΔΟΣ")], "η ΟΔΟΣ.Β", n=2)
    assert flagged([item("snake_case_is_parted")], "Snake case: is parted.", n=4)


def test_short_fields_are_compared_whole() -> None:
    eight, seven = item(" ".join(WORDS[:8])), item(" ".join(WORDS[:7]), name="1")
    found = find_overlap([eight, seven], [("d", " ".join(WORDS))])["t"]
    assert (found.items, found.compared, found.too_short) == (2, 1, 1)
    assert found.flagged == {"0": Match("0", 1.0, " ".join(WORDS[:8]), "d")}
    assert not flagged([eight], " ".join(WORDS[:7]), " ".join(WORDS[1:9]))


def test_shared_words_run_neither_across_fields_nor_across_texts() -> None:
    half, rest = " ".join(WORDS[:7]), " ".join(WORDS[7:])
    assert not flagged([item(half, rest)], " ".join(WORDS))
    assert not flagged([item(" ".join(WORDS))], half, rest)
    # Pieces of one text are one text.
    found = find_overlap([item(" ".join(WORDS))], [("d", half), ("d", rest)])["t"].flagged
    assert found["0"].share == 1.0


def test_the_share_counts_the_items_grams_of_all_fields() -> None:
    match = flagged([item(" ".join(WORDS), " ".join(WORDS[4:12]))], "zero " + " ".join(WORDS[:13]))["0"]
    # Two runs of 13 words, of which the first is found, and a short field, which is.
    assert match == Match("0", 2 / 3, " ".join(WORDS[:13]), "d0")


def test_tasks_are_kept_apart_and_in_order() -> None:
    items = [item(FOX, task="b"), item(FOX, task="a"), item("too short", name="1", task="b")]
    found = find_overlap(items, [("d", FOX)])
    assert list(found) == ["b", "a"]
    assert (found["b"].items, found["b"].too_short, list(found["b"].flagged)) == (2, 1, ["0"])
    assert find_overlap([], [("d", FOX)]) == {}


def test_counts_are_plain_numbers() -> None:
    found = find_overlap([item(FOX)], [("d", FOX)])["t"]
    assert json.loads(json.dumps([found.compared, found.too_short, found.flagged["0"].share])) == [1, 0, 1.0]


def test_progress_is_told_every_word_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "BATCH", 10)
    told: list[int] = []
    find_overlap([item(FOX)], [("a", FOX), ("a", FOX), ("b", FOX)], progress=told.append)
    assert told == sorted(told)
    assert len(told) > 1
    assert told[-1] == 3 * len(FOX.split())


def test_memory_does_not_grow_with_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "BATCH", 2**12)
    monkeypatch.setattr(ngrams, "PIECE", 2**14)

    def texts(number: int) -> Iterator[tuple[str, str]]:
        # The middle is one text in many pieces, the rest many texts; and nothing but the pair in hand is kept alive.
        for k in range(number):
            where = "long" if number // 3 < k < number // 2 else f"document {k}"
            yield where, f"{FOX} word{k} " * 4

    def peak(number: int) -> int:
        tracemalloc.start()
        try:
            found = find_overlap([item(FOX)], texts(number))
            assert found["t"].flagged["0"].where == "document 0"
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(100)
    assert peak(8000) < 1.2 * peak(800)


def test_wrong_numbers_and_repeated_items_are_refused() -> None:
    with pytest.raises(BrdError, match="n should be at least 2"):
        find_overlap([], [], n=1)
    with pytest.raises(BrdError, match="short should be at least 1"):
        find_overlap([], [], short=0)
    with pytest.raises(BrdError, match="task t: item '0' occurs twice"):
        find_overlap([item("a"), item("b")], [])


def test_item_texts_finds_every_string() -> None:
    record = {"a": "x", "n": 1, "no": None, "list": ["y", {"deep": ("z", 2.5, [["w"]])}], "yes": True, "empty": ""}
    assert item_texts(record) == ("x", "y", "z", "w", "")


def test_files_and_folders_are_read_as_a_recipes_corpus_is(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("First line.\nSecond line.\n\nOther document.\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"body": "A record."}\n', encoding="utf-8")
    assert list(corpus_texts(tmp_path / "a.txt")) == [
        ("a.txt#0", "First line."), ("a.txt#0", "Second line."), ("a.txt#1", "Other document."),
    ]  # fmt: skip
    assert list(corpus_texts(str(tmp_path / "*.jsonl"), Text(field="body"))) == [("b.jsonl#0", "A record.")]
    assert len(list(corpus_texts(tmp_path, Text(field="body")))) == 4


def test_a_match_across_hard_wrapped_lines_is_found(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("Title\n\n" + FOX.replace(" ", "\n") + "\n", encoding="utf-8")
    found = find_overlap([item(FOX)], corpus_texts(tmp_path / "book.txt"))["t"]
    assert found.flagged["0"].where == "book.txt#1"


def run_folder(folder: Path) -> Path:
    readings = [
        replace(READING, key=key, text=text, raw=raw)
        for key, text, raw in [("k0", "A sentence.", " An answer."), ("k1", "Not sealed.", " Yet.")]
    ]
    with Store(folder / "readings") as store:
        store.append(readings[:1])
        store.seal()
        store.append(readings[1:])
        journal = (folder / "readings/journal.jsonl").read_text(encoding="utf-8")
        store._open.clear()
    # What an interrupted run leaves: a row that is in no shard, and a torn one.
    (folder / "readings/journal.jsonl").write_text(journal + '{"key": "k2", "te', encoding="utf-8")
    chosen = {"document": ["a.txt", "b.txt"], "paragraph": [3, 0], "text": ["A.", "B."], "held_out": [False, True]}
    write_table(pa.table(chosen), folder / "readings/paragraphs.parquet")
    return folder


def test_a_run_gives_paragraphs_sentences_and_answers(tmp_path: Path) -> None:
    assert list(corpus_texts(run_folder(tmp_path))) == [
        ("a.txt/3", "A."),
        ("b.txt/0 (held out)", "B."),
        ("a.txt/3, sentence 1", "A sentence."),
        ("a.txt/3, sentence 1, qra answer", " An answer."),
        ("a.txt/3, sentence 1", "Not sealed."),
        ("a.txt/3, sentence 1, qra answer", " Yet."),
    ]


def test_a_run_that_another_process_writes_can_be_read(tmp_path: Path) -> None:
    run_folder(tmp_path)
    with Store(tmp_path / "readings"):
        assert len(list(corpus_texts(tmp_path))) == 6


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    def refused(source: Path | str, message: str) -> None:
        with pytest.raises(BrdError, match=message):
            find_overlap([item(FOX)], corpus_texts(source))

    refused(tmp_path / "none.txt", "none.txt: no such file or folder")
    refused(tmp_path / "*.txt", "no file matches")
    refused(str(tmp_path), "no file that can be read")
    (tmp_path / "run/readings").mkdir(parents=True)
    refused(tmp_path / "run", "readings: holds no readings yet")
    (tmp_path / "run/readings/readings-00000.parquet").write_bytes(b"PAR1 nonsense")
    refused(tmp_path / "run", "readings-00000.parquet: damaged")
