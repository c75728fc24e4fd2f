"""What was paid for in one run folder is not asked in another, whatever state that one is in."""

import json
import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pyarrow.parquet as pq
import pytest
from scripted import Scripted, a_recipe

from brd.console import Console
from brd.errors import BrdError
from brd.pipeline import Pipeline
from brd.reading import behavior, lookup
from brd.reading.behavior import behaviors_of
from brd.reading.known import known_to, siblings, taken_from
from brd.reading.naming import Names
from brd.reading.pending import questions
from brd.reading.reader import funnel, teacher_hash
from brd.reading.store import SCHEMA, Reading, Store, every
from brd.recipe import Recipe, changed
from brd.run import RunFolder, read_json
from brd.summary import reading_lines

BrdHere = Callable[..., CompletedProcess[str]]
SENTENCES = [f"Mira sailed to Oslo on day {n}." for n in range(20)]


class Teacher(Scripted):
    """Says for its dtype who it is, and counts what it is asked by the cue."""

    def __init__(self, dtype: str = "float32") -> None:
        super().__init__(lambda behavior, _: " Oslo (location)" if behavior == "ner" else " Who sailed?\nAnswer: Mira")
        self._dtype = dtype

    def identity(self) -> dict[str, str]:
        return {"model": "scripted", "dtype": self._dtype}


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> Teacher:
    return teaches(monkeypatch, Teacher())


def teaches(monkeypatch: pytest.MonkeyPatch, teacher: Teacher) -> Teacher:
    monkeypatch.setattr("brd.teachers.LazyTeacher", lambda _: teacher)
    return teacher


def runs(folder: Path, **reading: Any) -> Recipe:
    return a_recipe(folder, SENTENCES, known=["siblings"], shard_rows=6, **reading)


def read(run: Path, recipe: Recipe) -> dict[str, Any]:
    """Reads as `brd read` does; returns what the step says of itself."""
    pipeline = Pipeline(recipe, RunFolder(run, recipe), Console())
    pipeline.read()
    return pipeline.result("read")


def stored(run: Path) -> dict[str, Reading]:
    return {reading.key: reading for some in every(run / "readings") for reading in some}


def test_a_second_run_folder_asks_nothing_and_says_from_where_it_knows(tmp_path: Path, teacher: Teacher) -> None:
    recipe = runs(tmp_path)
    first = read(tmp_path / "runs" / "demo", recipe)
    assert (teacher.asked, first["known_from"]) == (40, {})
    second = read(tmp_path / "runs" / "other", changed(recipe, {"name": "other"}))
    assert teacher.asked == 40
    assert second["known_from"] == {"runs/demo": 40}
    assert "40 known from runs/demo" in reading_lines(second)
    assert not any("asked" in line for line in reading_lines(second))
    assert not {"ner_asked", "qra_asked", "prompt_tokens", "new_tokens"} & second["counts"].keys()
    assert second["readings"] == first["readings"]
    assert stored(tmp_path / "runs" / "other") == stored(tmp_path / "runs" / "demo")
    (event,) = [
        event
        for line in (tmp_path / "runs" / "other" / "metrics.jsonl").read_text().splitlines()
        if (event := json.loads(line)).get("event") == "known"
    ]
    assert event["from"] == {"runs/demo": 40}


def test_only_what_changed_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: Teacher) -> None:
    recipe = runs(tmp_path)
    read(tmp_path / "runs" / "demo", recipe)
    # Another question: the prompt of qra alone is another one.
    real = behavior.exemplars

    def reworded(name: str, *where: Any) -> Any:
        data = real(name, *where)
        return {**data, "task": f"{data['task']} Please."} if name == "qra" else data

    monkeypatch.setattr(behavior, "exemplars", reworded)
    found = read(tmp_path / "runs" / "reworded", recipe)
    assert ("ner_asked" in found["counts"], found["counts"]["qra_asked"], teacher.asked) == (False, 20, 60)
    assert found["known_from"] == {"runs/demo": 20}
    monkeypatch.setattr(behavior, "exemplars", real)
    # Fewer sentences are some of the same.
    found = read(
        tmp_path / "runs" / "fewer", changed(recipe, {"reading.sentences": 3, "reading.held_out_sentences": 2})
    )
    assert (teacher.asked, sum(found["known_from"].values())) == (60, 2 * funnel_size(found))
    other = teaches(monkeypatch, Teacher("bfloat16"))
    found = read(tmp_path / "runs" / "bf16", recipe)
    assert (other.asked, found["known_from"]) == (40, {})


def funnel_size(found: dict[str, Any]) -> int:
    return int(found["readings"]["ner"]["asked"])


def test_stores_that_cannot_hold_anything_are_not_gone_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: Teacher
) -> None:
    recipe = runs(tmp_path)
    read(tmp_path / "runs" / "demo", recipe)
    made: list[list[Path]] = []
    real = lookup.KeyIndex.add
    monkeypatch.setattr(lookup.KeyIndex, "add", lambda index, keys: (made.append(keys), real(index, keys))[1])
    teaches(monkeypatch, Teacher("bfloat16"))
    Pipeline(recipe, RunFolder(tmp_path / "runs" / "bf16", recipe), Console())
    behaviors = behaviors_of(recipe.reading)
    for dtype, holds in (("bfloat16", False), ("float32", True)):
        names = Names(recipe, behaviors, teacher_hash(Teacher(dtype)))
        known = known_to(recipe, names, tmp_path / "runs" / "bf16")
        assert bool(known) is holds
        assert not made
    key = next(iter(stored(tmp_path / "runs" / "demo")))
    assert key in known
    assert len(made) == 7


def _holds(run: Path, written: Any, go_on: Any) -> None:
    """Another process that has written a line and a half and goes on writing later."""
    with Store(run / "readings", 100) as store:
        journal = (run / "half").read_bytes()
        assert store._journal is not None
        store._journal.write(journal)
        store._journal.flush()
        written.set()
        go_on.wait(30)


def test_questions_that_are_written_down_leave_out_what_siblings_know(tmp_path: Path, teacher: Teacher) -> None:
    recipe = runs(tmp_path)
    read(tmp_path / "runs" / "demo", changed(recipe, {"reading.behaviors": ["ner"]}))
    with Store(tmp_path / "runs" / "other" / "readings") as store:
        assert {q.behavior for q in questions(recipe, teacher_hash(teacher), store)} == {"qra"}


def test_a_sibling_that_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: Teacher) -> None:
    recipe = runs(tmp_path, behaviors=["ner"])
    read(tmp_path / "runs" / "first", recipe)
    lines = (tmp_path / "runs" / "first" / "readings" / "sealed.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 2
    busy = tmp_path / "runs" / "busy"
    RunFolder(busy, changed(recipe, {"name": "busy"}))
    (busy / "readings").mkdir()
    (tmp_path / "runs" / "first").rename(tmp_path / "gone")
    (busy / "half").write_bytes(lines[0] + lines[1][:-20])
    context = multiprocessing.get_context("fork")
    written, go_on = context.Event(), context.Event()
    writer = context.Process(target=_holds, args=(busy, written, go_on))
    writer.start()
    try:
        assert written.wait(30)
        with pytest.raises(BrdError, match="another process is writing"):
            read(busy, changed(recipe, {"name": "busy"}))
        found = read(tmp_path / "runs" / "mine", recipe)
    finally:
        go_on.set()
        writer.join()
    assert (found["known_from"], teacher.asked) == ({"runs/busy": 1}, 20 + 19)


def test_two_runs_at_once_never_disturb_each_other(tmp_path: Path, teacher: Teacher) -> None:
    recipe = runs(tmp_path)
    wrong: list[BaseException] = []

    def one(name: str) -> None:
        try:
            for _ in range(3):
                read(tmp_path / "runs" / name, changed(recipe, {"name": name}))
                (tmp_path / "runs" / name / "steps" / "read.json").unlink()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=one, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    contents = [{key: r.raw for key, r in stored(tmp_path / "runs" / name).items()} for name in "ab"]
    assert contents[0] == contents[1]
    assert len(contents[0]) == 40
    assert 40 <= teacher.asked <= 80


@pytest.mark.parametrize("damage", ["torn", "nonsense", "other", "flipped", "late", "journal", "away"])
def test_a_damaged_sibling_is_passed_over_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], teacher: Teacher, damage: str
) -> None:
    recipe = runs(tmp_path, behaviors=["ner"])
    read(tmp_path / "runs" / "demo", recipe)
    folder = tmp_path / "runs" / "demo" / "readings"
    shard, second = folder / "readings-00000.parquet", folder / "readings-00001.parquet"
    content, before, lost = shard.read_bytes(), teacher.asked, 6
    if damage == "torn":
        shard.write_bytes(content[: len(content) // 2])
        second.write_bytes(b"")
        lost = 12
    elif damage == "nonsense":
        shard.write_bytes(b"PAR1 nonsense")
    elif damage == "other":
        pq.write_table(pq.read_table(shard).drop_columns(["raw"]), shard)
    elif damage == "flipped":
        raw = pq.read_metadata(shard).row_group(0).column(SCHEMA.names.index("raw"))
        at = raw.dictionary_page_offset + raw.total_compressed_size - 1
        shard.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
    elif damage == "late":
        # Gone between the search and the reading of it.
        real = lookup.Lookup.tables

        def tables(index: Any, *arguments: Any) -> Any:
            shard.unlink(missing_ok=True)
            yield from real(index, *arguments)

        monkeypatch.setattr(lookup.Lookup, "tables", tables)
    elif damage == "journal":
        (folder / "journal.jsonl").write_bytes(b'{"key": "a"}\n[1]\n\xff\xfe\x00{"\n"x"\nnull')
        lost = 0
    else:
        shard.unlink()
    capsys.readouterr()
    found = read(tmp_path / "runs" / "other", changed(recipe, {"name": "other"}))
    assert teacher.asked == before + lost
    assert found["known_from"] == {"runs/demo": 20 - lost}
    said = [line for line in capsys.readouterr().err.splitlines() if "passed over" in line]
    assert len(said) == (0 if damage in ("journal", "away") else 1)
    assert all("runs/demo/readings/readings-0000" in line for line in said)
    assert len(stored(tmp_path / "runs" / "other")) == 20


def test_who_is_a_sibling(tmp_path: Path) -> None:
    recipe = runs(tmp_path)
    for name in ("a", "b", "demo.before-20261129-101500"):
        RunFolder(tmp_path / "runs" / name, recipe)
        (tmp_path / "runs" / name / "readings").mkdir()
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "runs" / "a.txt").touch()
    assert siblings(tmp_path / "runs" / "a") == [tmp_path / "runs" / "a", tmp_path / "runs" / "b"]
    assert siblings(tmp_path / "nowhere" / "a") == []


def test_runs_that_a_recipe_names(tmp_path: Path, teacher: Teacher, brd_here: BrdHere) -> None:
    recipe = changed(runs(tmp_path, behaviors=["ner"]), {"reading.known": []})
    read(tmp_path / "theirs" / "demo", recipe)
    (tmp_path / "small.yaml").write_text(json.dumps(recipe.model_dump()))
    for number, known in enumerate(("[theirs]", "[theirs/demo]", "[siblings,theirs]", "[]")):
        run = tmp_path / f"runs-{number}" / "out"
        done = brd_here("read", "small.yaml", "--out", run, "--set", f"reading.known={known}")
        assert done.returncode == 0, done.stderr
        assert taken_from(run / "readings") == ({"theirs/demo": 20} if number < 3 else {})
        assert ("20 known from theirs/demo" in done.stderr) == (number < 3)
        audited = brd_here("audit", run)
        assert ("not asked here, since known: 20 from theirs/demo" in audited.stdout) == (number < 3)
        assert read_json(run / "audit.json")["known_from"] == taken_from(run / "readings")
    (tmp_path / "plain").mkdir()
    for known, why in (("plain", "no run folder, and no folder of run folders"), ("nowhere", "no such file or folder")):
        done = brd_here("read", "small.yaml", "--out", "last", "--set", f"reading.known=[{known}]")
        assert done.returncode == 2
        assert f"{known}: {why}" in done.stderr


def test_what_was_known_stays_counted_when_reading_goes_on(tmp_path: Path, teacher: Teacher) -> None:
    all_of_them = runs(tmp_path, behaviors=["ner"])
    few = changed(all_of_them, {"reading.sentences": 5, "reading.held_out_sentences": 2})
    n = funnel_size(read(tmp_path / "runs" / "demo", few))
    read(tmp_path / "runs" / "other", few)
    found = read(tmp_path / "runs" / "other", all_of_them)
    assert found["known_from"] == {"runs/demo": n}
    assert found["counts"]["ner_asked"] == 20 - n
    assert funnel(all_of_them, tmp_path / "runs" / "other" / "readings")["ner"]["asked"] == 20
