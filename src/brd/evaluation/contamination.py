"""What of the evaluation tasks stands in a training corpus: shared runs of words (n-grams), found in one pass.

Words are case-folded runs of letters and digits; everything else only parts them. The corpus is streamed: beside a
batch of its words, memory holds what belongs to the items alone (their vocabulary and their n-grams).
"""

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from brd.errors import BrdError
from brd.evaluation.records import records
from brd.evaluation.tasks import Task
from brd.reading.parquet import read_table
from brd.sections.text import Text
from brd.text.sources import paragraphs

Ids = npt.NDArray[np.int32]
Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.intp]

# Words of the corpus that are looked up at once: the arrays of a batch fit a processor's cache.
BATCH = 2**16
# Characters of a text that are turned into words at once: a list of words takes many times the text's size.
PIECE = 2**18
# Odd, so that multiplying loses no bits.
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

# Folded rather than lower-cased: how a Greek sigma is lower-cased depends on the letters around it.
_WORD = re.compile(r"[^\W_]+")
_SPACE = re.compile(r"\s")
_ASCII = {code: chr(code).lower() if chr(code).isalnum() else " " for code in range(128)}


@dataclass(frozen=True, slots=True)
class TaskItem:
    """An item of a task as it is compared: each of ``texts`` by itself; ``id`` is unique in its task."""

    task: str
    id: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Match:
    """An item that shares words with the corpus.

    ``share`` (above 0, at most 1) is the share of the item's n-grams that were found, ``gram`` the first of them (a
    whole short field only when there is no other), as folded words, ``where`` the place of its first occurrence.
    """

    id: str
    share: float
    gram: str
    where: str


@dataclass(frozen=True, slots=True)
class TaskOverlap:
    """Counts of a task's items (``compared`` and ``too_short`` add up to ``items``) and the matches by item id."""

    items: int
    compared: int
    too_short: int
    flagged: dict[str, Match]


def find_overlap(
    items: Iterable[TaskItem],
    corpus: Iterable[tuple[str, str]],
    n: int = 13,
    short: int = 8,
    progress: Callable[[int], None] | None = None,
) -> dict[str, TaskOverlap]:
    """The overlap of each task with a corpus of (where, text) pairs, which is read once.

    An item is flagged when ``n`` words in a row of one of its texts occur in the corpus. A text of fewer words, but
    at least ``short``, has to occur whole; still shorter ones are not compared. Consecutive pairs with the same
    ``where`` are pieces of one text: shared words may run across them. ``progress`` is told the number of words read.
    Raises BrdError for n below 2, short below 1, and an item that occurs twice.
    """
    if n < 2:
        raise BrdError(f"n should be at least 2 words (got {n})")
    if short < 1:
        raise BrdError(f"short should be at least 1 word (got {short})")
    index = _Index(items, n, short)
    read = 0
    for batch in _batches(corpus, n):
        index.look_up(batch)
        read += batch.new
        if progress:
            progress(read)
    return index.result()


def task_items(task: Task) -> Iterator[TaskItem]:
    """The records of a task as they are, under the ids that scores have; templates add words of their own."""
    for number, record in enumerate(records(task.name, task.source)):
        yield TaskItem(task.name, f"{task.name}/{number}", item_texts(record))


def item_texts(record: dict[str, Any]) -> tuple[str, ...]:
    """Every string value of a task's record, in its order, through nested lists and mappings (keys are left out)."""
    return tuple(_strings(record))


def corpus_texts(source: str | Path, settings: Text | None = None) -> Iterator[tuple[str, str]]:
    """A corpus as (where, text) pairs for ``find_overlap``.

    A run folder gives its paragraphs (``document/paragraph``), then the sentences and the teacher's raw answers of
    all its readings, wanted by the recipe or not. Anything else is read as ``text.source`` is (file, folder, glob,
    ``hub:NAME``), with the other keys of ``settings``; where is then the document. Raises BrdError for what is
    missing, empty or cannot be read.
    """
    readings = Path(source) / "readings"
    if readings.is_dir():
        yield from _run_texts(readings)
        return
    for paragraph in paragraphs((settings or Text()).model_copy(update={"source": str(source)})):
        yield paragraph.document, paragraph.text


def _words(text: str) -> list[str]:
    # The same words three times as fast, where it can be.
    return text.translate(_ASCII).split() if text.isascii() else _WORD.findall(text.casefold())


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _run_texts(folder: Path) -> Iterator[tuple[str, str]]:
    shards, chosen, journal = sorted(folder.glob("readings-*.parquet")), folder / "paragraphs.parquet", None
    if chosen.exists():
        for row in _rows(chosen, ["document", "paragraph", "text", "held_out"]):
            yield f"{row['document']}/{row['paragraph']}{' (held out)' if row['held_out'] else ''}", row["text"]
    for shard in shards:
        for row in _rows(shard, ["document", "paragraph", "sentence", "text", "behavior", "raw"]):
            yield from _reading_texts(row)
    # What an interrupted run has not sealed into a shard yet.
    with suppress(FileNotFoundError):
        journal = (folder / "journal.jsonl").open(encoding="utf-8", errors="replace")
    if journal is not None:
        with journal:
            for line in journal:
                # The last line may be torn, as in the store.
                with suppress(json.JSONDecodeError):
                    yield from _reading_texts(json.loads(line))
    if not (shards or chosen.exists() or journal):
        raise BrdError(f"{folder}: holds no readings yet; run the recipe's read step first")


def _rows(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    for part in read_table(path, columns).to_batches(max_chunksize=1024):
        yield from part.to_pylist()


def _reading_texts(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    where = f"{row['document']}/{row['paragraph']}, sentence {row['sentence']}"
    yield where, row["text"]
    yield f"{where}, {row['behavior']} answer", row["raw"]


@dataclass(frozen=True, slots=True)
class _Batch:
    """Words in a row, ``""`` between texts; text k begins at ``starts[k]``. The last ``new`` words are new."""

    words: list[str]
    starts: list[int]
    places: list[str]
    new: int

    def place(self, position: int) -> str:
        return self.places[bisect_right(self.starts, position) - 1]


def _batches(corpus: Iterable[tuple[str, str]], n: int) -> Iterator[_Batch]:
    """The corpus in batches; one that goes on in the text of the batch before begins with its last n - 1 words."""
    words: list[str] = []
    starts: list[int] = []
    places: list[str] = []
    new = 0
    for where, text in corpus:
        if not places or where != places[-1]:
            words.append("")
            starts.append(len(words))
            places.append(where)
        for piece in _pieces(text):
            found = _words(piece)
            words += found
            new += len(found)
            if len(words) >= BATCH + n:
                yield _Batch(words, starts, places, new)
                words = words[max(starts[-1], len(words) - n + 1) :]
                starts, places, new = [0], [where], 0
    if new:
        yield _Batch(words, starts, places, new)


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces of bounded size, cut at white space only."""
    start = 0
    while len(text) - start > PIECE and (cut := _SPACE.search(text, start + PIECE)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


class _Index:
    """The items' vocabulary and n-grams, and what was found of them. Word 0 is every word that no item has."""

    def __init__(self, items: Iterable[TaskItem], n: int, short: int) -> None:
        self._vocabulary: dict[str, int] = {}
        # In the order of the items; a second value of the same key would hide a match.
        self._items: dict[tuple[str, str], None] = {}
        grams: dict[int, list[Ids]] = {}
        owners: dict[int, list[Positions]] = {}
        number = self._vocabulary.setdefault
        for item in items:
            if (item.task, item.id) in self._items:
                raise BrdError(f"task {item.task}: item {item.id!r} occurs twice")
            for text in item.texts:
                words = _words(text)
                if len(words) < min(n, short):
                    continue
                ids = np.array([number(word, len(self._vocabulary) + 1) for word in words], dtype=np.int32)
                windows = sliding_window_view(ids, length := min(n, len(words)))
                grams.setdefault(length, []).append(windows)
                owners.setdefault(length, []).append(np.full(len(windows), len(self._items)))
            self._items[item.task, item.id] = None
        self._values = np.random.default_rng(0).integers(2**64, size=len(self._vocabulary) + 1, dtype=np.uint64)
        self._grams = {
            length: _Grams(np.concatenate(grams.pop(length)), np.concatenate(owners.pop(length)), self._values)
            for length in sorted(grams, reverse=True)
        }

    def look_up(self, batch: _Batch) -> None:
        """Mark the n-grams that occur in the batch."""
        words = batch.words
        ids = np.fromiter(map(self._vocabulary.get, words, repeat(0)), dtype=np.int32, count=len(words))
        for length, hashes in _hashes(self._values[ids], max(self._grams, default=0)):
            if grams := self._grams.get(length):
                grams.look_up(ids, hashes, batch)

    def result(self) -> dict[str, TaskOverlap]:
        """The overlap by task, tasks and items in their order."""
        count = np.zeros(len(self._items), dtype=np.intp)
        found = count.copy()
        examples: dict[int, tuple[str, str]] = {}
        spelled = ["", *self._vocabulary]
        for grams in self._grams.values():
            hits = np.flatnonzero(grams.places[grams.number] >= 0)
            count += np.bincount(grams.owner, minlength=len(count))
            found += np.bincount(grams.owner[hits], minlength=len(count))
            for owner, hit in zip(*np.unique(grams.owner[hits], return_index=True), strict=True):
                gram = grams.number[hits[hit]]
                text = " ".join(spelled[word] for word in grams.rows[gram])
                examples.setdefault(int(owner), (text, grams.names[grams.places[gram]]))
        tasks: dict[str, list[tuple[int, str]]] = {}
        for owner, (task, name) in enumerate(self._items):
            tasks.setdefault(task, []).append((owner, name))
        return {
            task: TaskOverlap(
                items=len(members),
                compared=(compared := sum(bool(count[owner]) for owner, _ in members)),
                too_short=len(members) - compared,
                flagged={
                    name: Match(name, float(found[owner] / count[owner]), *examples[owner])
                    for owner, name in members
                    if owner in examples
                },
            )
            for task, members in tasks.items()
        }


def _hashes(values: Hashes, longest: int) -> Iterator[tuple[int, Hashes]]:
    """(length, the hash of the so many words from each position on) for every length up to ``longest``."""
    hashes = np.zeros(len(values) + 1, dtype=np.uint64)
    for length in range(1, min(longest, len(values)) + 1):
        hashes = hashes[:-1] * MULTIPLIER
        hashes += values[length - 1 :]
        yield length, hashes


class _Grams:
    """The items' n-grams of one length, each distinct one once: ``rows`` of word ids, sorted by hash.

    ``number`` gives the row of each n-gram of the items, ``owner`` its item. ``places`` is -1 until the row is found,
    then an index into ``names``.
    """

    def __init__(self, grams: Ids, owner: Positions, values: Hashes) -> None:
        self.owner = owner
        raw = np.ascontiguousarray(grams).view(np.dtype((np.void, grams[0].nbytes))).ravel()
        _, first, number = np.unique(raw, return_index=True, return_inverse=True)
        rows = grams[first]
        hashes = np.zeros(len(rows), dtype=np.uint64)
        for column in rows.T:
            hashes = hashes * MULTIPLIER + values[column]
        order = np.argsort(hashes)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        self.rows: Ids = rows[order]
        self.number: Positions = rank[number]
        self.places: Positions = np.full(len(rows), -1)
        self.names: list[str] = []
        self._hashes: Hashes = hashes[order]
        # Most windows of a corpus are dismissed by one look at a sparse table of the hashes' leading bits.
        bits = max(len(rows), 2**10).bit_length() + 4
        self._shift = np.uint64(64 - bits)
        self._maybe = np.zeros(2**bits, dtype=bool)
        self._maybe[self._hashes >> self._shift] = True

    def look_up(self, ids: Ids, hashes: Hashes, batch: _Batch) -> None:
        """Mark the rows that occur among ``ids``; ``hashes`` are those of its windows."""
        at = np.flatnonzero(self._maybe[hashes >> self._shift])
        row = np.searchsorted(self._hashes, hashes[at])
        windows = sliding_window_view(ids, self.rows.shape[1])
        # Equal hashes lie side by side, and only equal words count: a collision costs a round, never a wrong match.
        while len(at):
            at, row = at[row < len(self.rows)], row[row < len(self.rows)]
            same = self._hashes[row] == hashes[at]
            at, row = at[same], row[same]
            equal = (self.rows[row] == windows[at]).all(axis=1)
            self._mark(row[equal], at[equal], batch)
            at, row = at[~equal], row[~equal] + 1

    def _mark(self, row: Positions, at: Positions, batch: _Batch) -> None:
        new = self.places[row] < 0
        for found, first in zip(*np.unique(row[new], return_index=True), strict=True):
            self.places[found] = len(self.names)
            self.names.append(batch.place(int(at[new][first])))
