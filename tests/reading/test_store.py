import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from brd.errors import BrdError
from brd.reading.store import SCHEMA, Reading, Store, every, load, reading_key

BLANK = Reading(
    key="", document="a.txt", paragraph=0, sentence=0, start=0, end=5, text="Oslo.", behavior="ner", raw=" none",
    finished=True, content='{"entities": []}', verdict="verified", reason="", parts=0, parts_verified=0, teacher="t",
    prompt_hash="p", prompt_tokens=9, new_tokens=2,
)  # fmt: skip


def readings(*numbers: int) -> list[Reading]:
    return [replace(BLANK, key=f"k{n}", sentence=n, text=f"Sentence {n} — “ü”.") for n in numbers]


def keys(folder: Path) -> list[str]:
    return [
        key for shard in sorted(folder.glob("readings-*.parquet")) for key in pq.read_table(shard)["key"].to_pylist()
    ]


def test_readings_come_back_as_they_were(tmp_path: Path) -> None:
    written = readings(0, 1, 2)
    with Store(tmp_path, shard_rows=2) as store:
        store.append(written[:2])
        assert len(store.shards()) == 1
        store.append(written[2:])
        assert "k2" in store
        assert "k3" not in store
    assert load(tmp_path, ["k0", "k2", "k9"]) == {"k0": written[0], "k2": written[2]}
    assert pq.read_table(store.shards()[0]).schema.equals(SCHEMA)


def _dies(folder: Path) -> None:
    import os

    store = Store(folder, shard_rows=2).__enter__()
    store.append(readings(0, 1))
    store.append(readings(2))
    os._exit(9)


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_dies, args=(tmp_path,))
    process.start()
    process.join()
    with Store(tmp_path, shard_rows=2) as store:
        assert all(f"k{n}" in store for n in range(3))
        store.append(readings(3))
    assert keys(tmp_path) == ["k0", "k1", "k2", "k3"]


def test_a_torn_line_is_dropped_and_the_rest_kept(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append(readings(0))
        store.folder.joinpath("journal.jsonl").open("a").write('{"key": "k1", "docu')
        lines = store.folder.joinpath("journal.jsonl").read_text()
        store._open.clear()
    (tmp_path / "journal.jsonl").write_text(lines)
    with Store(tmp_path) as store:
        assert "k0" in store
        assert "k1" not in store
    assert keys(tmp_path) == ["k0"]


def test_rows_that_are_both_sealed_and_in_the_journal_count_once(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append(readings(0, 1))
        journal = (tmp_path / "journal.jsonl").read_text()
    # A process that died after renaming the shard and before emptying the journal leaves this.
    (tmp_path / "journal.jsonl").write_text(journal)
    with Store(tmp_path) as store:
        store.append(readings(2))
    assert keys(tmp_path) == ["k0", "k1", "k2"]


def test_every_reading_is_met_once_a_few_at_a_time(tmp_path: Path) -> None:
    with Store(tmp_path, shard_rows=3) as store:
        store.append(readings(0, 1, 2))
        store.append(readings(3, 4))
        journal = (tmp_path / "journal.jsonl").read_text()
        assert [[r.key for r in some] for some in every(tmp_path, rows=2)] == [["k3", "k4"], ["k0", "k1"], ["k2"]]
    (tmp_path / "journal.jsonl").write_text(journal + '{"key": "k5", "docu')
    assert sorted(r.key for some in every(tmp_path) for r in some) == ["k0", "k1", "k2", "k3", "k4"]
    assert list(every(tmp_path / "nowhere")) == []
    (tmp_path / "readings-00002.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(BrdError, match=r"readings-00002.parquet: damaged"):
        list(every(tmp_path))


def test_the_last_readings_come_in_their_order(tmp_path: Path) -> None:
    with Store(tmp_path, shard_rows=3) as store:
        for n in range(8):
            store.append(readings(n))
        assert [r.sentence for r in store.last("ner", lambda r: True, 4)] == [4, 5, 6, 7]
        assert [r.sentence for r in store.last("ner", lambda r: r.sentence % 3 == 0, 2)] == [3, 6]
        assert [r.sentence for r in store.last("ner", lambda r: r.sentence < 2, 9)] == [0, 1]
        assert store.last("ner", lambda r: False, 9) == []


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with Store(tmp_path), pytest.raises(BrdError, match="another process"), Store(tmp_path):
        pass


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "readings-00000.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(BrdError, match=r"readings-00000.parquet: damaged"), Store(tmp_path):
        pass


def test_new_verdicts_replace_old_ones_and_keep_the_answers(tmp_path: Path) -> None:
    with Store(tmp_path, shard_rows=2) as store:
        store.append(readings(0, 1, 2))
        changed = store.rejudge(
            lambda r: replace(r, verdict="rejected", reason="test") if r.key == "k1" else r, {"ner": "v2"}
        )
    found = load(tmp_path, ["k0", "k1", "k2"])
    assert changed == 1
    assert [found[k].verdict for k in ("k0", "k1", "k2")] == ["verified", "rejected", "verified"]
    assert found["k1"].raw == " none"


def test_a_key_names_all_that_can_change_a_reading() -> None:
    base = ("teacher", "prompt", 72, "A sentence.")
    others = [("t", *base[1:]), (base[0], "p", *base[2:]), (*base[:2], 73, base[3]), (*base[:3], "Another.")]
    assert len({reading_key(*args) for args in [base, *others]}) == 5


def test_the_journal_is_plain_json_lines(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append(readings(4))
        (line,) = (tmp_path / "journal.jsonl").read_text(encoding="utf-8").splitlines()
        assert json.loads(line)["text"] == "Sentence 4 — “ü”."
