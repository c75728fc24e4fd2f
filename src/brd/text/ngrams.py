"""Runs of words (n-grams) of some texts, looked up in others: for tests that stand in a corpus, and copies in it.

Words are case-folded runs of letters and digits; everything else only parts them. Rolling hashes propose, and the words
themselves decide: a hash collision finds nothing.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from brd.errors import BrdError

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


def words_of(text: str) -> list[str]:
    """The case-folded runs of letters and digits of a text."""
    # The same words three times as fast, where it can be.
    return text.translate(_ASCII).split() if text.isascii() else _WORD.findall(text.casefold())


@dataclass(frozen=True, slots=True)
class Batch:
    """Words in a row, ``""`` between texts; text k begins at ``starts[k]``. The last ``new`` words are new."""

    words: list[str]
    starts: list[int]
    places: list[str]
    new: int

    def place(self, position: int) -> str:
        return self.places[bisect_right(self.starts, position) - 1]


def batches(corpus: Iterable[tuple[str, str]], n: int) -> Iterator[Batch]:
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
            found = words_of(piece)
            words += found
            new += len(found)
            if len(words) >= BATCH + n:
                yield Batch(words, starts, places, new)
                words = words[max(starts[-1], len(words) - n + 1) :]
                starts, places, new = [0], [where], 0
    if new:
        yield Batch(words, starts, places, new)


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces of bounded size, cut at white space only."""
    start = 0
    while len(text) - start > PIECE and (cut := _SPACE.search(text, start + PIECE)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


@dataclass(frozen=True, slots=True)
class Found:
    """By owner: how many n-grams it has and how many of them were found; an example and its place where any was."""

    count: Positions
    found: Positions
    examples: dict[int, tuple[str, str]]


class Index:
    """The vocabulary and n-grams of texts, each owned by one of ``owners`` (numbered in their order).

    A text has an n-gram at each of its positions; one of fewer than ``n`` words, but at least ``short``, is one whole;
    still shorter ones have none. Word 0 is every word that no owner has. Raises BrdError for n below 2, short below 1.
    """

    def __init__(self, owners: Iterable[Iterable[str]], n: int, short: int) -> None:
        if n < 2:
            raise BrdError(f"n should be at least 2 words (got {n})")
        if short < 1:
            raise BrdError(f"short should be at least 1 word (got {short})")
        self._vocabulary: dict[str, int] = {}
        self._owners = 0
        grams: dict[int, list[Ids]] = {}
        owned: dict[int, list[Positions]] = {}
        number = self._vocabulary.setdefault
        for owner, texts in enumerate(owners):
            for text in texts:
                words = words_of(text)
                if len(words) < min(n, short):
                    continue
                ids = np.array([number(word, len(self._vocabulary) + 1) for word in words], dtype=np.int32)
                windows = sliding_window_view(ids, length := min(n, len(words)))
                grams.setdefault(length, []).append(windows)
                owned.setdefault(length, []).append(np.full(len(windows), owner))
            self._owners = owner + 1
        self._values = np.random.default_rng(0).integers(2**64, size=len(self._vocabulary) + 1, dtype=np.uint64)
        self._grams = {
            length: _Grams(np.concatenate(grams.pop(length)), np.concatenate(owned.pop(length)), self._values)
            for length in sorted(grams, reverse=True)
        }

    def look_up(self, batch: Batch) -> None:
        """Mark the n-grams that occur in the batch."""
        for grams, ids, hashes in self._windows(batch.words):
            grams.look_up(ids, hashes, batch)

    def first(self, words: list[str]) -> tuple[int, str] | None:
        """An owner and its n-gram that occurs among ``words`` (the longest of them), or None; nothing is marked."""
        found: tuple[int, str] | None = None
        for grams, ids, hashes in self._windows(words):
            for rows, _ in grams.matches(ids, hashes):
                row = int(rows.min())
                found = int(grams.owner[np.argmax(grams.number == row)]), self._spelled(grams.rows[row])
                break
        return found

    def found(self) -> Found:
        """What was marked so far."""
        count = np.zeros(self._owners, dtype=np.intp)
        found = count.copy()
        examples: dict[int, tuple[str, str]] = {}
        for grams in self._grams.values():
            hits = np.flatnonzero(grams.places[grams.number] >= 0)
            count += np.bincount(grams.owner, minlength=len(count))
            found += np.bincount(grams.owner[hits], minlength=len(count))
            for owner, hit in zip(*np.unique(grams.owner[hits], return_index=True), strict=True):
                gram = grams.number[hits[hit]]
                examples.setdefault(int(owner), (self._spelled(grams.rows[gram]), grams.names[grams.places[gram]]))
        return Found(count, found, examples)

    def _windows(self, words: list[str]) -> Iterator[tuple["_Grams", Ids, Hashes]]:
        """The n-grams of each length, the words' ids and the hashes of their windows of that length."""
        ids = np.fromiter(map(self._vocabulary.get, words, repeat(0)), dtype=np.int32, count=len(words))
        for length, hashes in _hashes(self._values[ids], max(self._grams, default=0)):
            if grams := self._grams.get(length):
                yield grams, ids, hashes

    @cached_property
    def _words(self) -> list[str]:
        return ["", *self._vocabulary]

    def _spelled(self, gram: Ids) -> str:
        return " ".join(self._words[word] for word in gram)


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

    def look_up(self, ids: Ids, hashes: Hashes, batch: Batch) -> None:
        """Mark the rows that occur among ``ids``; ``hashes`` are those of its windows."""
        for row, at in self.matches(ids, hashes):
            self._mark(row, at, batch)

    def matches(self, ids: Ids, hashes: Hashes) -> Iterator[tuple[Positions, Positions]]:
        """Rows that occur among ``ids`` and where, in rounds that are not empty."""
        at = np.flatnonzero(self._maybe[hashes >> self._shift])
        row = np.searchsorted(self._hashes, hashes[at])
        windows = sliding_window_view(ids, self.rows.shape[1])
        # Equal hashes lie side by side, and only equal words count: a collision costs a round, never a wrong match.
        while len(at):
            at, row = at[row < len(self.rows)], row[row < len(self.rows)]
            same = self._hashes[row] == hashes[at]
            at, row = at[same], row[same]
            equal = (self.rows[row] == windows[at]).all(axis=1)
            if equal.any():
                yield row[equal], at[equal]
            at, row = at[~equal], row[~equal] + 1

    def _mark(self, row: Positions, at: Positions, batch: Batch) -> None:
        new = self.places[row] < 0
        for found, first in zip(*np.unique(row[new], return_index=True), strict=True):
            self.places[found] = len(self.names)
            self.names.append(batch.place(int(at[new][first])))
