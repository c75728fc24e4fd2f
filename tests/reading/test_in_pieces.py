"""Reading a few sentences at a time gives what reading all at once does, and takes known answers from their files."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scripted import Scripted, a_recipe

from brd.errors import BrdError
from brd.reading import chosen, reader, store
from brd.reading.chosen import choose, load_paragraphs
from brd.reading.reader import funnel, read
from brd.reading.store import Reading, export, readings_of, shards
from brd.recipe import changed
from brd.teachers.teacher import Answer

# Every third sentence stands in several places.
SENTENCES = [f"Mira sailed to Oslo on day {0 if n % 3 == 0 else n}. Day {n} was long for her." for n in range(30)]


class Counted(Scripted):
    def __init__(self, answer: str = " Oslo (location)") -> None:
        super().__init__(lambda behavior, _: answer if behavior == "ner" else " Who sailed to Oslo?\nAnswer: Mira")
        self.batches: list[int] = []

    def answer(
        self, prefix: str, suffixes: Sequence[str], *, stop: Sequence[str], max_new_tokens: int
    ) -> Iterator[tuple[int, Answer]]:
        self.batches.append(len(suffixes))
        yield from super().answer(prefix, suffixes, stop=stop, max_new_tokens=max_new_tokens)


def stored(folder: Path) -> list[Reading]:
    return [r for shard in shards(folder) for r in readings_of(pq.read_table(shard))]


def test_a_few_sentences_at_a_time_give_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, folders = a_recipe(tmp_path, SENTENCES, shard_rows=8), (tmp_path / "whole", tmp_path / "pieces")
    told: list[list[tuple[str, int, int | None]]] = [[], []]
    counts: list[Counter[str]] = []
    teachers = [Counted(), Counted()]
    for folder, teacher, said in zip(folders, teachers, told, strict=True):
        counts.append(read(recipe, folder, teacher, lambda *what, said=said: said.append(what)))
        monkeypatch.setattr(reader, "WINDOW", 7)
        monkeypatch.setattr(reader, "GROUP", 2)
        monkeypatch.setattr(chosen, "ROWS", 2)
    assert stored(folders[0]) == stored(folders[1])
    assert len({r.key for r in stored(folders[0])}) == len(stored(folders[0])) == 2 * 51
    assert load_paragraphs(folders[0]) == load_paragraphs(folders[1])
    assert counts[0] == counts[1]
    assert (counts[0]["ner_asked"], counts[0]["ner_known_before"]) == (51, 9)
    assert teachers[0].batches == [51, 51]
    assert teachers[1].batches == [7, 7, 7, 7, 7, 7, 7, 2] * 2
    for said in told:
        done = [n for name, n, of in said if name == "qra" and of == 60]
        assert done == sorted(done)
        assert done[-1] == 60
    assert funnel(recipe, folders[0]) == funnel(recipe, folders[1])
    assert funnel(recipe, folders[0])["ner"]["asked"] == 60


def test_what_is_missing_here_and_there_is_asked_in_full_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "WINDOW", 6)
    recipe, folder = a_recipe(tmp_path, SENTENCES, behaviors=["ner"], shard_rows=1), tmp_path / "readings"
    read(recipe, folder, Counted())
    for shard in shards(folder)[::4]:
        shard.unlink()
    (folder / "sealed.jsonl").unlink()
    teacher = Counted()
    read(recipe, folder, teacher)
    assert teacher.batches == [6, 6, 1]
    assert len({r.key for r in stored(folder)}) == 51


def test_known_answers_are_taken_from_their_files_the_last_of_which_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_GROUP", 4)
    recipe = a_recipe(tmp_path, SENTENCES, shard_rows=8)
    read(recipe, tmp_path / "first", Counted())
    readings = stored(tmp_path / "first")
    export(((r, "en") for r in reversed(readings)), tmp_path / "a.parquet", "of our own")
    changed_ones = [(replace(r, raw=" none"), "") for r in readings if r.behavior == "ner"][:10]
    export(changed_ones, tmp_path / "b.parquet", "other")
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 26
    known = changed(recipe, {"reading.known": [str(tmp_path / name) for name in ("a.parquet", "b.parquet")]})
    teacher = Counted()
    monkeypatch.setattr(reader, "WINDOW", 7)
    counts = read(known, tmp_path / "second", teacher)
    assert (teacher.asked, counts["ner_known_before"], counts["qra_known_before"]) == (0, 60, 60)
    found = stored(tmp_path / "second")
    assert [(r.key, r.document, r.sentence) for r in found] == [(r.key, r.document, r.sentence) for r in readings]
    assert [r.raw for r in found if r.behavior == "ner"][:11] == [" none"] * 10 + [" Oslo (location)"]
    # What only some are known of is asked for the rest.
    some = changed(recipe, {"reading.known": [str(tmp_path / "b.parquet")]})
    read(some, tmp_path / "third", teacher)
    assert teacher.asked == 102 - 10
    assert {r.key for r in stored(tmp_path / "third")} == {r.key for r in readings}


def test_a_known_file_that_is_none_is_named(tmp_path: Path) -> None:
    recipe = a_recipe(tmp_path, SENTENCES)
    pq.write_table(pa.table({"key": ["k"], "raw": ["x"]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("PAR1")
    for name, why in (("none", "no such file"), ("other", "it has no column 'behavior'"), ("text", "damaged")):
        teacher = Counted()
        with pytest.raises(BrdError, match=rf"{name}.parquet: .*{why}"):
            read(changed(recipe, {"reading.known": [str(tmp_path / f"{name}.parquet")]}), tmp_path / "out", teacher)
        assert teacher.asked == 0


@pytest.mark.parametrize("order", ["corpus", "shuffled"])
def test_documents_are_counted_once_in_either_order(tmp_path: Path, order: str) -> None:
    (tmp_path / "corpus.txt").write_text("\n\n".join(f"A sentence of {n}.\nOne more.\nAnd another." for n in range(40)))
    text: dict[str, Any] = {"text.source": str(tmp_path / "corpus.txt"), "text.order": order}
    counts: Counter[str] = Counter()
    assert len(list(choose(changed(a_recipe(tmp_path / "x", SENTENCES), text), counts))) == 120
    assert counts["documents_seen"] == 40
