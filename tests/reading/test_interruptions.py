"""Whatever ends a read, nothing that was answered is lost, and the same command goes on from there."""

import json
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scripted import Scripted, a_recipe

from brd.console import Console
from brd.errors import BrdError
from brd.pipeline import Pipeline
from brd.reading.reader import read
from brd.reading.store import SCHEMA, Reading, every, readings_of
from brd.recipe import Recipe, changed
from brd.run import RunFolder

BrdHere = Callable[..., CompletedProcess[str]]
SENTENCES = [f"Mira sailed to Oslo on day {n}." for n in range(20)]


def stored(folder: Path) -> list[Reading]:
    """What the shards hold, in their order; nothing may be left in the journal."""
    assert (folder / "journal.jsonl").read_bytes() == b""
    return [r for shard in sorted(folder.glob("readings-*.parquet")) for r in readings_of(pq.read_table(shard))]


def by_key(readings: list[Reading]) -> dict[str, Reading]:
    found = {r.key: r for r in readings}
    assert len(found) == len(readings)
    return found


def oslo() -> Scripted:
    return Scripted(lambda *_: " Oslo (location)")


def small(folder: Path, **reading: Any) -> Recipe:
    return a_recipe(folder, SENTENCES, behaviors=["ner"], shard_rows=6, **reading)


def test_killed_at_any_of_its_calls_it_loses_nothing_and_asks_for_no_more_than_was_under_way(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_reads.py")
    done = subprocess.run([sys.executable, script, tmp_path, "1", "50"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    killed = json.loads(done.stdout)
    assert sum(killed) == 50
    undisturbed = by_key(stored(tmp_path / "undisturbed" / "readings"))
    asked = (tmp_path / "undisturbed" / "asked").read_text().splitlines()
    assert len(undisturbed) == len(asked) == len(set(asked)) == 30
    again = 0
    for number, times in enumerate(killed):
        run = tmp_path / f"run-{number}"
        assert by_key(stored(run / "readings")) == undisturbed
        assert not list((run / "readings").glob("*.damaged"))
        answers = Counter((run / "asked").read_text().splitlines())
        assert set(answers) == set(asked)
        # One answer at most was given and not yet written when the process died.
        assert answers.total() <= len(asked) + times
        again += answers.total() - len(asked)
    assert again < 10


def test_a_journal_that_was_cut_anywhere_keeps_every_whole_line(tmp_path: Path) -> None:
    recipe, folder = changed(small(tmp_path), {"reading.shard_rows": 100}), tmp_path / "readings"
    read(recipe, folder, oslo())
    lines = (folder / "sealed.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "sealed.jsonl").unlink()
    (folder / "readings-00000.parquet").unlink()
    whole = lines[0] + lines[1]
    for cut in range(len(whole) - 1, len(whole) - 1 - len(lines[1]), -40):
        (folder / "journal.jsonl").write_bytes(whole[:cut])
        for path in folder.glob("readings-*"):
            path.unlink()
        (folder / "sealed.jsonl").unlink(missing_ok=True)
        teacher = oslo()
        read(recipe, folder, teacher)
        # A line that lacks its end alone is whole.
        assert teacher.asked == (18 if cut == len(whole) - 1 else 19)
        assert len(by_key(stored(folder))) == 20


@pytest.fixture
def damaged_folder(tmp_path: Path) -> Path:
    read(small(tmp_path), tmp_path / "readings", oslo())
    assert len(list((tmp_path / "readings").glob("readings-*"))) == 4
    return tmp_path / "readings"


def damages(content: bytes) -> Iterator[bytes]:
    yield b""
    yield content[: len(content) // 2]
    yield bytes(len(content))
    for at in range(10, len(content), 397):
        yield content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


def test_a_damaged_last_shard_is_made_anew_from_its_journal(damaged_folder: Path, tmp_path: Path) -> None:
    last, before = damaged_folder / "readings-00003.parquet", by_key(stored(damaged_folder))
    content, found = last.read_bytes(), 0
    for damage in damages(content):
        last.write_bytes(damage)
        teacher = oslo()
        counts = read(small(tmp_path), damaged_folder, teacher)
        assert teacher.asked == 0
        assert by_key(stored(damaged_folder)) == before
        if counts["shards_mended"]:
            found += 1
            assert (damaged_folder / "readings-00003.parquet.damaged").read_bytes() == damage
    # Some bytes of a Parquet file are of no use to a reader.
    assert found > 10


def test_without_that_journal_the_error_says_what_to_do_and_nothing_else_is_asked_again(
    damaged_folder: Path, tmp_path: Path
) -> None:
    before = by_key(stored(damaged_folder))
    (damaged_folder / "sealed.jsonl").unlink()
    for name, rows in (("readings-00003.parquet", 2), ("readings-00001.parquet", 6)):
        shard = damaged_folder / name
        others = {p: p.read_bytes() for p in damaged_folder.glob("readings-*") if p != shard}
        shard.write_bytes(b"PAR1 nonsense")
        teacher = oslo()
        with pytest.raises(BrdError, match=rf"{name}: damaged .*; put a whole copy in its place, or move it away"):
            read(small(tmp_path), damaged_folder, teacher)
        assert {p: p.read_bytes() for p in others} == others
        shard.rename(tmp_path / name)
        read(small(tmp_path), damaged_folder, teacher)
        assert teacher.asked == rows
        assert by_key(stored(damaged_folder)) == before


def test_a_shard_that_was_moved_away_makes_the_finished_step_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, teacher = small(tmp_path), oslo()
    monkeypatch.setattr("brd.teachers.LazyTeacher", lambda _: teacher)
    run = RunFolder(tmp_path / "run", recipe)

    def read_step() -> bool:
        pipeline = Pipeline(recipe, run, Console())
        current = pipeline.state()["read"]
        pipeline.read()
        return current

    assert [read_step(), read_step(), teacher.asked] == [False, True, 20]
    (tmp_path / "run" / "readings" / "readings-00001.parquet").unlink()
    assert [read_step(), read_step(), teacher.asked] == [False, True, 26]


class FullDisk(Scripted):
    """From its fifteenth answer on no file can grow beyond so many bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(self._fill)
        self._limit = limit

    def _fill(self, *_: str) -> str:
        if self.asked == 15:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return " Oslo (location)"


# A shard of six rows has some 7,000 bytes, their journal 3,000: the one is too large for 5,000, both for 400.
@pytest.mark.parametrize(("limit", "asked", "again"), [(5000, 18, 0), (400, 15, 1)], ids=["sealing", "writing"])
def test_a_full_disk_loses_nothing(
    tmp_path: Path, brd_here: BrdHere, monkeypatch: pytest.MonkeyPatch, limit: int, asked: int, again: int
) -> None:
    (tmp_path / "small.yaml").write_text(json.dumps(small(tmp_path).model_dump()))
    teacher = FullDisk(limit)
    monkeypatch.setattr("brd.teachers.LazyTeacher", lambda _: teacher)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        done = brd_here("read", "small.yaml", "--out", "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.returncode == 2, done.stderr
    assert "the disk is full" in done.stderr
    assert "make room and run the same command again" in done.stderr
    assert teacher.asked == asked
    folder = tmp_path / "run" / "readings"
    assert sorted(p.name for p in folder.glob("readings-*")) == ["readings-00000.parquet", "readings-00001.parquet"]
    teacher = oslo()
    monkeypatch.setattr("brd.teachers.LazyTeacher", lambda _: teacher)
    done = brd_here("read", "small.yaml", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert teacher.asked == 20 - asked + again
    assert len(by_key(stored(folder))) == 20


def test_an_interruption_while_sealing_seals_each_reading_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from brd.reading import store

    real, calls = store._write, 0

    def interrupted(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        real(*arguments)
        if calls == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(store, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read(small(tmp_path), tmp_path / "readings", oslo())
    assert len(by_key(stored(tmp_path / "readings"))) == 12
    teacher = oslo()
    read(small(tmp_path), tmp_path / "readings", teacher)
    assert teacher.asked == 8
    assert len(by_key(stored(tmp_path / "readings"))) == 20


def test_nothing_depends_on_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(small(tmp_path), tmp_path / "plain", oslo())
    now = iter(range(10**6, 0, -1))
    for clock in ("time", "monotonic", "perf_counter", "time_ns", "monotonic_ns", "perf_counter_ns"):
        monkeypatch.setattr(f"time.{clock}", lambda: next(now))
    (tmp_path / "backwards").mkdir()
    half = changed(small(tmp_path), {"reading.sentences": 9, "reading.held_out_sentences": 3})
    for recipe in (half, small(tmp_path)):
        read(recipe, tmp_path / "backwards", oslo())
    monkeypatch.undo()
    plain, backwards = (by_key(stored(tmp_path / name)) for name in ("plain", "backwards"))
    assert plain == backwards


def test_a_store_of_before_is_read_and_noted_without_asking(tmp_path: Path) -> None:
    """Shards that note no verifier, a journal beside them, and verdicts that another one gave."""
    read(small(tmp_path), tmp_path / "readings", oslo())
    folder = tmp_path / "readings"
    before = by_key(stored(folder))
    (folder / "sealed.jsonl").unlink()
    for shard in sorted(folder.glob("readings-*")):
        rows = [replace(r, verdict="rejected", reason="of before") for r in readings_of(pq.read_table(shard))]
        table = pa.table({name: [getattr(r, name) for r in rows] for name in SCHEMA.names}, schema=SCHEMA)
        if shard.name == "readings-00003.parquet":
            shard.unlink()
            lines = [json.dumps({name: getattr(r, name) for name in SCHEMA.names}) for r in rows]
            (folder / "journal.jsonl").write_text("\n".join(lines) + "\n")
        else:
            pq.write_table(table, shard)
    assert {r.reason for some in every(folder) for r in some} == {"of before"}
    teacher = oslo()
    read(small(tmp_path), folder, teacher)
    assert teacher.asked == 0
    assert by_key(stored(folder)) == before
    files = {p: p.stat().st_mtime_ns for p in folder.glob("readings-*")}
    read(small(tmp_path), folder, teacher)
    assert {p: p.stat().st_mtime_ns for p in folder.glob("readings-*")} == files
