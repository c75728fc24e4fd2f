"""The readings of a run: a journal that grows with every answer, sealed into Parquet shards.

One row a reading, found by its ``key``: the hash of teacher, decoding, prompt and sentence. A reading that was paid
for stays in the store even when a later recipe does not want it; what a recipe wants is looked up by key.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from brd.errors import BrdError
from brd.teachers.teacher import Answer

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("document", pa.string()),
        ("paragraph", pa.int32()),
        ("sentence", pa.int32()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("text", pa.string()),
        ("behavior", pa.string()),
        ("raw", pa.string()),
        ("finished", pa.bool_()),
        ("content", pa.string()),
        ("verdict", pa.string()),
        ("reason", pa.string()),
        ("parts", pa.int32()),
        ("parts_verified", pa.int32()),
        ("teacher", pa.string()),
        ("prompt_hash", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("new_tokens", pa.int32()),
    ]
)


@dataclass(frozen=True, slots=True)
class Reading:
    """One behavior's result for one sentence.

    ``document``, ``paragraph``, ``sentence``, ``start`` and ``end`` (characters of the paragraph) say where the
    sentence was first met. ``raw`` is the teacher's answer as it came; ``content`` the parsed reading as JSON (null
    when malformed); ``parts`` count entities, or 1 for a question with its answer.
    """

    key: str
    document: str
    paragraph: int
    sentence: int
    start: int
    end: int
    text: str
    behavior: str
    raw: str
    finished: bool
    content: str | None
    verdict: str
    reason: str
    parts: int
    parts_verified: int
    teacher: str
    prompt_hash: str
    prompt_tokens: int
    new_tokens: int

    def parsed(self) -> dict[str, Any] | None:
        return None if self.content is None else json.loads(self.content)


_FIELDS = [field.name for field in fields(Reading)]


def reading_key(teacher: str, prompt_hash: str, max_new_tokens: int, sentence: str) -> str:
    """Names a reading by all that can change it; ``teacher`` is the hash of the teacher's identity."""
    return hashlib.sha256("\0".join([teacher, prompt_hash, str(max_new_tokens), sentence]).encode()).hexdigest()[:32]


class Store:
    """A folder of readings, held by one process at a time. Use as a context manager; leaving it seals the journal."""

    def __init__(self, folder: Path, shard_rows: int = 5000) -> None:
        self.folder = folder
        self.shard_rows = shard_rows
        self._open: list[Reading] = []
        self._keys: set[str] = set()
        self._journal: TextIO | None = None
        self._lock: TextIO | None = None

    def __enter__(self) -> "Store":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BrdError(f"{self.folder}: another process is writing to these readings; wait for it") from None
        for path in self.folder.glob("*.tmp"):
            path.unlink()
        for shard in self.shards():
            self._keys.update(read_table(shard, ["key"])["key"].to_pylist())
        self._open = [r for r in _read_journal(self.folder) if r.key not in self._keys]
        self._keys.update(r.key for r in self._open)
        self._journal = self._write_journal()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            # After a failed write (a full disk, say) the journal already holds what is not sealed.
            if kind is None or not issubclass(kind, OSError):
                self.seal()
        finally:
            if self._journal:
                # Closing flushes; on a full disk the rest is in the journal up to its last whole line.
                with contextlib.suppress(OSError):
                    self._journal.close()
            if self._lock:
                self._lock.close()

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def shards(self) -> list[Path]:
        return sorted(self.folder.glob("readings-*.parquet"))

    def append(self, readings: Iterable[Reading]) -> None:
        """Write readings to the journal; they survive the end of this process from here on."""
        assert self._journal is not None, "the store is not open"
        for reading in readings:
            self._journal.write(json.dumps(asdict(reading), ensure_ascii=False) + "\n")
            self._open.append(reading)
            self._keys.add(reading.key)
        self._journal.flush()
        if len(self._open) >= self.shard_rows:
            self.seal()

    def seal(self) -> None:
        """Turn the journal into a Parquet shard."""
        if not self._open or self._journal is None:
            return
        numbers = [int(path.stem.rsplit("-", 1)[1]) for path in self.shards()]
        _write(self.folder / f"readings-{max(numbers, default=-1) + 1:05d}.parquet", self._open)
        self._open = []
        # A process that dies before this line leaves rows both in the shard and in the journal: opening drops them.
        self._journal.seek(0)
        self._journal.truncate()

    def rejudge(self, judge: Callable[[Reading], Reading]) -> int:
        """Judge every stored answer anew (the verifier or its settings changed); returns how many verdicts changed."""
        self.seal()
        changed = 0
        for shard in self.shards():
            before = _readings(read_table(shard))
            after = [judge(reading) for reading in before]
            if before != after:
                changed += sum(a != b for a, b in zip(before, after, strict=True))
                _write(shard, after)
        return changed

    def last(self, wanted: Callable[[Reading], bool], most: int) -> list[Reading]:
        """The readings that came in last among those that are wanted, at most so many, in their order."""
        found: list[Reading] = []
        shards = (_readings(read_table(path)) for path in reversed(self.shards()))
        for readings in itertools.chain([self._open], shards):
            found += itertools.islice(filter(wanted, reversed(readings)), most - len(found))
            if len(found) == most:
                break
        return found[::-1]

    def _write_journal(self) -> TextIO:
        path = self.folder / "journal.jsonl"
        scratch = path.with_suffix(".tmp")
        with scratch.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in self._open)
        os.replace(scratch, path)
        return path.open("a", encoding="utf-8")


class Lookup:
    """Finds the readings of a folder by key without holding them: 40 bytes of memory for each that is stored."""

    def __init__(self, folder: Path) -> None:
        self._shards = sorted(folder.glob("readings-*.parquet"))
        found = [np.array(read_table(shard, ["key"])["key"].to_pylist(), dtype="S32") for shard in self._shards]
        self._starts = np.cumsum([0, *map(len, found)])
        keys = np.concatenate([np.empty(0, dtype="S32"), *found])
        self._order = np.argsort(keys)
        self._keys = keys[self._order]

    def __len__(self) -> int:
        return len(self._keys)

    def where(self, keys: Sequence[str]) -> npt.NDArray[np.intp]:
        """The rows of these keys, over all shards laid end to end; -1 for a key that is not there."""
        wanted = np.array(keys, dtype="S32")
        if not len(self):
            return np.full(len(wanted), -1, dtype=np.intp)
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self) - 1)
        return np.where(self._keys[at] == wanted, self._order[at], -1)

    def readings(self, rows: npt.NDArray[np.intp]) -> Iterator[Reading]:
        """The readings of these rows (ascending), of one shard at a time."""
        cuts = np.searchsorted(rows, self._starts)
        for number, shard in enumerate(self._shards):
            if len(inside := rows[cuts[number] : cuts[number + 1]]):
                yield from _readings(read_table(shard).take(pa.array(inside - self._starts[number])))


# What a teacher was paid for; the rest follows from the corpus and the verifier.
_TRAVELLING = ("key", "behavior", "text", "raw", "finished", "teacher", "prompt_hash", "prompt_tokens", "new_tokens")
# Readings that are written at once.
_GROUP = 10_000


def export(readings: Iterable[Reading], path: Path, note: str, columns: Sequence[str] = _TRAVELLING) -> int:
    """Write readings as one Parquet file that other runs take as ``reading.known``; returns how many.

    ``note`` (source and licence of the sentences) stands in the file's metadata under ``note``.
    """
    schema = pa.schema([SCHEMA.field(name) for name in columns], metadata={"note": note})
    stream, count = iter(readings), 0
    with _whole(path) as scratch, pq.ParquetWriter(scratch, schema, compression="zstd") as writer:
        while rows := list(islice(stream, _GROUP)):
            writer.write_table(pa.table({name: [getattr(r, name) for r in rows] for name in columns}, schema=schema))
            count += len(rows)
    return count


def load_answers(paths: Iterable[Path]) -> dict[str, Answer]:
    """The answers of exported files by their keys. Raises BrdError for a file that is missing or something else."""
    found: dict[str, Answer] = {}
    for path in paths:
        if not path.is_file():
            raise BrdError(f"reading.known: {path}: no such file")
        table = read_table(path)
        if missing := [name for name in _TRAVELLING if name not in table.column_names]:
            raise BrdError(f"reading.known: {path}: no readings in this file (it has no column {missing[0]!r})")
        columns = [table[name].to_pylist() for name in ("key", "raw", "prompt_tokens", "new_tokens", "finished")]
        found.update((key, Answer(*rest)) for key, *rest in zip(*columns, strict=True))
    return found


def load(folder: Path, keys: Iterable[str]) -> dict[str, Reading]:
    """The readings with these keys, by key (those that are there)."""
    wanted = set(keys)
    found: dict[str, Reading] = {}
    for shard in sorted(folder.glob("readings-*.parquet")):
        found.update((r.key, r) for r in _readings(read_table(shard)) if r.key in wanted)
    return found


def every(folder: Path, rows: int = 1024) -> Iterator[list[Reading]]:
    """All readings of a folder, each once and at most so many of a shard at a time, without opening it as a store."""
    # A reading that is being sealed stands in both; the journal is read first, so that none is missed.
    journal = {reading.key: reading for reading in _read_journal(folder)}
    if journal:
        yield list(journal.values())
    for shard in sorted(folder.glob("readings-*.parquet")):
        for table in read_pieces(shard, rows):
            yield [r for r in _readings(table) if r.key not in journal]


def with_judgement(reading: Reading, judgement: Any) -> Reading:
    """The reading with another verdict (a ``brd.reading.behavior.Judgement``)."""
    content = None if judgement.content is None else json.dumps(judgement.content, ensure_ascii=False)
    return replace(
        reading,
        content=content,
        verdict=judgement.verdict,
        reason=judgement.reason,
        parts=judgement.parts,
        parts_verified=judgement.parts_verified,
    )


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file of a run folder; BrdError when it is damaged."""
    with _named_when_damaged(path):
        return pq.read_table(path, columns=columns)


def read_pieces(path: Path, rows: int) -> Iterator[pa.Table]:
    """The same, at most so many rows at a time."""
    with _named_when_damaged(path), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(rows):
            yield pa.Table.from_batches([batch])


@contextlib.contextmanager
def _named_when_damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise BrdError(
            f"{path}: damaged ({str(error).splitlines()[0]}); move it away and run the same command again"
        ) from None


def write_table(table: pa.Table, path: Path) -> None:
    """Write Parquet so that the file is whole or absent."""
    with _whole(path) as scratch:
        pq.write_table(table, scratch, compression="zstd")


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A scratch file that takes the place of ``path`` when the block has ended well."""
    scratch = path.with_name(path.name + ".tmp")
    try:
        yield scratch
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def _read_journal(folder: Path) -> Iterator[Reading]:
    path = folder / "journal.jsonl"
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            # The last line may be torn; whatever is not a whole record was never reported as done.
            with contextlib.suppress(json.JSONDecodeError, TypeError):
                yield Reading(**json.loads(line))


def _readings(table: pa.Table) -> list[Reading]:
    columns = [table[name].to_pylist() for name in _FIELDS]
    return [Reading(*row) for row in zip(*columns, strict=True)]


def _write(path: Path, readings: list[Reading]) -> None:
    columns = {name: [getattr(r, name) for r in readings] for name in _FIELDS}
    write_table(pa.table(columns, schema=SCHEMA), path)
