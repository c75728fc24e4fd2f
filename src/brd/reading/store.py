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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import pyarrow as pa

from brd.errors import BrdError
from brd.reading.behavior import Judgement
from brd.reading.keys import KeyIndex
from brd.reading.parquet import Damaged, read_note, read_pieces, read_table, write_table, writer

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


JOURNAL = "journal.jsonl"
# The journal that the last shard was made of.
_SEALED = "sealed.jsonl"

_FIELDS = [field.name for field in fields(Reading)]
_values = attrgetter(*_FIELDS)
_encode = json.JSONEncoder(ensure_ascii=False).encode
# Under this name a shard notes by which verifier the readings of each behavior were judged ("" where nobody knows).
_JUDGED_BY = "judged_by"


def reading_key(teacher: str, prompt_hash: str, max_new_tokens: int, sentence: str) -> str:
    """Names a reading by all that can change it; ``teacher`` is the hash of the teacher's identity."""
    return hashlib.sha256("\0".join([teacher, prompt_hash, str(max_new_tokens), sentence]).encode()).hexdigest()[:32]


class Store:
    """A folder of readings, held by one process at a time. Use as a context manager; leaving it seals the journal.

    In memory are the readings of the journal and 24 bytes for the key of each that is sealed. ``mended`` counts damaged
    shards that were put together again on opening.
    """

    def __init__(self, folder: Path, shard_rows: int = 5000) -> None:
        self.folder = folder
        self.shard_rows = shard_rows
        self.mended = 0
        self._open: list[Reading] = []
        self._open_keys: set[str] = set()
        self._sealed = KeyIndex()
        self._next = 0
        # By which verifier of each behavior the open readings were judged.
        self._verifiers: Mapping[str, str] = {}
        self._journal: BinaryIO | None = None
        self._lock: TextIO | None = None

    def __enter__(self) -> "Store":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._load()
        except BlockingIOError:
            self._lock.close()
            raise BrdError(f"{self.folder}: another process is writing to these readings; wait for it") from None
        except BaseException:
            self._lock.close()
            raise
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

    def has(self, keys: Sequence[str]) -> list[bool]:
        """Of each key, whether its reading is in the store."""
        sealed = (self._sealed.rows(keys) >= 0).tolist()
        return [there or key in self._open_keys for key, there in zip(keys, sealed, strict=True)]

    def __contains__(self, key: str) -> bool:
        return self.has([key])[0]

    def shards(self) -> list[Path]:
        return shards(self.folder)

    def append(self, readings: Iterable[Reading]) -> None:
        """Write readings to the journal; they survive the end of this process from here on."""
        assert self._journal is not None, "the store is not open"
        for reading in readings:
            line = _line(reading)
            # First what is sealed, then the journal: an interruption between the two loses nothing.
            self._open.append(reading)
            self._open_keys.add(reading.key)
            self._journal.write(line)
            if len(self._open) >= self.shard_rows:
                self.seal()
        self._journal.flush()

    def seal(self) -> None:
        """Turn the journal into a Parquet shard. The journal is kept beside it until the next one is sealed."""
        if not self._open or self._journal is None:
            return
        self._journal.flush()
        judged_by = {reading.behavior: self._verifiers.get(reading.behavior, "") for reading in self._open}
        # Sealing again after an interruption in here writes the same shard again.
        _write(self.folder / f"readings-{self._next:05d}.parquet", self._open, judged_by)
        self._sealed.add([reading.key for reading in self._open])
        self._open, self._open_keys, self._next = [], set(), self._next + 1
        # A process that dies before this line leaves rows both in the shard and in the journal: opening drops them.
        self._journal.close()
        os.replace(self.folder / JOURNAL, self.folder / _SEALED)
        self._journal = (self.folder / JOURNAL).open("wb")

    def rejudge(self, judge: Callable[[Reading], Reading], verifiers: Mapping[str, str]) -> int:
        """Judge anew every stored answer that was not judged by these ``verifiers``; returns how many verdicts changed.

        ``verifiers`` names a verifier of each behavior by all that can change its verdicts (``verifier_print``). What
        is appended from now on is taken to be judged by them. Readings of other behaviors stay as they are.
        """
        before, self._open = self._open, [judge(r) if r.behavior in verifiers else r for r in self._open]
        changed = sum(a != b for a, b in zip(before, self._open, strict=True))
        self._verifiers = dict(verifiers)
        for shard in self.shards():
            noted: dict[str, str] | None = json.loads(read_note(shard, _JUDGED_BY) or "null")
            stale = {name for name, mark in verifiers.items() if noted is None or noted.get(name, mark) != mark}
            if stale:
                before = readings_of(read_table(shard, _FIELDS))
                after = [judge(r) if r.behavior in stale else r for r in before]
                changed += sum(a != b for a, b in zip(before, after, strict=True))
                judged_by = {r.behavior: verifiers.get(r.behavior, (noted or {}).get(r.behavior, "")) for r in after}
                _write(shard, after, judged_by)
        return changed

    def last(self, behavior: str, wanted: Callable[[Reading], bool], most: int) -> list[Reading]:
        """A behavior's readings that came in last among those that are wanted, at most so many, in their order."""
        found: list[Reading] = []
        sealed = (readings_of(read_table(path, _FIELDS, behavior)) for path in reversed(self.shards()))
        for readings in itertools.chain([[r for r in self._open if r.behavior == behavior]], sealed):
            found += itertools.islice(filter(wanted, reversed(readings)), most - len(found))
            if len(found) == most:
                break
        return found[::-1]

    def _load(self) -> None:
        for path in self.folder.glob("*.tmp"):
            path.unlink()
        found, broken = self.shards(), self._damaged()
        if broken:
            found.remove(broken)
        for shard in found:
            self._sealed.add(read_table(shard, ["key"])["key"].to_pylist())
        # Of two rows with one key the later one; those that a shard has are not open.
        journals = itertools.chain(read_journal(self.folder / _SEALED), read_journal(self.folder / JOURNAL))
        rows = {reading.key: reading for reading in journals}
        there = self.has(list(rows))
        self._open = [reading for reading, sealed in zip(rows.values(), there, strict=True) if not sealed]
        self._open_keys = {reading.key for reading in self._open}
        self._journal = self._write_journal()
        if broken:
            os.replace(broken, broken.with_name(f"{broken.name}.damaged"))
            self.mended += 1
        self._next = max((int(path.stem.rsplit("-", 1)[1]) for path in found), default=-1) + 1

    def _damaged(self) -> Path | None:
        """The last shard, where it is damaged and the journal that it was made of is there. Raises Damaged where that
        is not. An earlier shard, which no crash can damage, is for the user to look at."""
        for shard in self.shards()[-1:]:
            try:
                if not read_table(shard).schema.equals(SCHEMA):
                    raise Damaged(shard, "it has other columns")
            except Damaged:
                if not (self.folder / _SEALED).exists():
                    raise
                return shard
        return None

    def _write_journal(self) -> BinaryIO:
        path = self.folder / JOURNAL
        scratch = path.with_suffix(".tmp")
        with scratch.open("wb") as file:
            file.writelines(map(_line, self._open))
        os.replace(scratch, path)
        return path.open("ab")


def shards(folder: Path) -> list[Path]:
    """The Parquet files of a folder of readings, in the order in which they were sealed."""
    return sorted(folder.glob("readings-*.parquet"))


# What a teacher was paid for; the rest follows from the corpus and the verifier.
TRAVELLING = ("key", "behavior", "text", "raw", "finished", "teacher", "prompt_hash", "prompt_tokens", "new_tokens")
# Readings that are written at once.
_GROUP = 10_000


def export(readings: Iterable[tuple[Reading, str]], path: Path, note: str, columns: Sequence[str] = TRAVELLING) -> int:
    """Write readings as one Parquet file that other runs take as ``reading.known``; returns how many.

    Each comes with the code of its sentence's language, which a store does not know (empty: nor does anybody else); it
    is the column ``language``, behind the others. ``note`` (source and licence of the sentences) stands in the file's
    metadata under ``note``.
    """
    language = pa.field("language", pa.string())
    schema = pa.schema([*(SCHEMA.field(name) for name in columns), language], metadata={"note": note})
    stream, count = iter(readings), 0
    with writer(path, schema) as into:
        while rows := list(itertools.islice(stream, _GROUP)):
            content: dict[str, list[Any]] = {name: [getattr(r, name) for r, _ in rows] for name in columns}
            content["language"] = [code or None for _, code in rows]
            into.write_table(pa.table(content, schema=schema))
            count += len(rows)
    return count


def load(folder: Path, keys: Iterable[str]) -> dict[str, Reading]:
    """The readings with these keys, by key (those that are there)."""
    wanted = set(keys)
    found: dict[str, Reading] = {}
    for shard in shards(folder):
        found.update((r.key, r) for r in readings_of(read_table(shard, _FIELDS)) if r.key in wanted)
    return found


def every(folder: Path, rows: int = 1024) -> Iterator[list[Reading]]:
    """All readings of a folder, each once and at most so many of a shard at a time, without opening it as a store."""
    # A reading that is being sealed stands in both; the journal is read first, so that none is missed.
    journal = {reading.key: reading for reading in read_journal(folder / JOURNAL)}
    if journal:
        yield list(journal.values())
    for shard in shards(folder):
        for table in read_pieces(shard, rows):
            yield [r for r in readings_of(table) if r.key not in journal]


def judged(judgement: Judgement) -> dict[str, Any]:
    """What a judgement says about a reading, by the names of its fields."""
    return {
        "content": None if judgement.content is None else _encode(judgement.content),
        "verdict": judgement.verdict,
        "reason": judgement.reason,
        "parts": judgement.parts,
        "parts_verified": judgement.parts_verified,
    }


def with_judgement(reading: Reading, judgement: Judgement) -> Reading:
    """The reading with another verdict."""
    return replace(reading, **judged(judgement))


def readings_of(table: pa.Table) -> list[Reading]:
    columns = [table[name].to_pylist() for name in _FIELDS]
    return [Reading(*row) for row in zip(*columns, strict=True)]


def read_journal(path: Path) -> Iterator[Reading]:
    """The readings of a journal, which another process may be writing; none where there is no such file."""
    try:
        file = path.open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            # The last line may be torn; whatever is not a whole record was never reported as done.
            with contextlib.suppress(json.JSONDecodeError, TypeError):
                yield Reading(**json.loads(line))


def _line(reading: Reading) -> bytes:
    return f"{_encode(dict(zip(_FIELDS, _values(reading), strict=True)))}\n".encode()


def _write(path: Path, readings: list[Reading], judged_by: Mapping[str, str]) -> None:
    columns = dict(zip(_FIELDS, zip(*map(_values, readings), strict=True), strict=True))
    write_table(pa.table(columns, schema=SCHEMA), path, {_JUDGED_BY: json.dumps(judged_by, sort_keys=True)})
