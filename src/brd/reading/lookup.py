"""Readings in Parquet files, found by key without holding them."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from brd.errors import BrdError
from brd.reading.keys import KeyIndex, Rows
from brd.reading.parquet import named, read_table
from brd.reading.store import TRAVELLING, Reading, readings_of
from brd.teachers.teacher import Answer


class Lookup:
    """Finds the rows of Parquet files by key: 24 bytes of memory for each, and one row group at a time while reading.

    A key that several files have is found in the last of them.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._index = KeyIndex()
        # Each row group: its file, its number there and how many rows it has.
        self._groups: list[tuple[Path, int, int]] = []
        for path in files:
            with named(path), pq.ParquetFile(path) as file:
                about = file.metadata
                self._groups += [(path, n, about.row_group(n).num_rows) for n in range(about.num_row_groups)]
            self._index.add(read_table(path, ["key"])["key"].to_pylist())
        self._starts = np.array([0, *accumulate(rows for *_, rows in self._groups)])

    def __len__(self) -> int:
        return len(self._index)

    def where(self, keys: Sequence[str]) -> Rows:
        """The rows of these keys, over all files laid end to end; -1 for a key that is not there."""
        return self._index.rows(keys)

    def tables(self, rows: Rows, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """These rows (ascending), those of a row group in one table."""
        cuts = np.searchsorted(rows, self._starts)
        for number, (path, group, _) in enumerate(self._groups):
            if len(inside := rows[cuts[number] : cuts[number + 1]]):
                with named(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
                    table = file.read_row_group(group, columns=columns)
                yield table.take(pa.array(inside - self._starts[number]))

    def readings(self, rows: Rows) -> Iterator[Reading]:
        """The readings of these rows (ascending)."""
        for table in self.tables(rows):
            yield from readings_of(table)


class Known:
    """Answers that others paid for, in exported files. Raises BrdError for a file that is missing or something else."""

    def __init__(self, files: Sequence[Path]) -> None:
        for path in files:
            if not path.is_file():
                raise BrdError(f"reading.known: {path}: no such file")
            with named(path):
                there = pq.read_schema(path).names
            if missing := [name for name in TRAVELLING if name not in there]:
                raise BrdError(f"reading.known: {path}: no readings in this file (it has no column {missing[0]!r})")
        self._lookup = Lookup(files)

    def __len__(self) -> int:
        return len(self._lookup)

    def __contains__(self, key: str) -> bool:
        return bool(self._lookup.where([key])[0] >= 0)

    def answers(self, keys: Sequence[str]) -> dict[str, Answer]:
        """The answers to these keys, as far as they are known, by key."""
        rows = self._lookup.where(keys)
        found: dict[str, Answer] = {}
        for table in self._lookup.tables(np.unique(rows[rows >= 0]), ["key", *_ANSWER]):
            columns = [table[name].to_pylist() for name in ("key", *_ANSWER)]
            found.update((key, Answer(*rest)) for key, *rest in zip(*columns, strict=True))
        return found


# The columns that an answer is made of, in its order.
_ANSWER = ("raw", "prompt_tokens", "new_tokens", "finished")
