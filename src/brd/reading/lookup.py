"""Readings in Parquet files, found by key without holding them."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from brd.errors import BrdError
from brd.reading.keys import KeyIndex, Rows
from brd.reading.parquet import Damaged, named
from brd.reading.store import Reading, readings_of


def _raised(path: Path, error: BrdError) -> None:
    raise error


class Lookup:
    """Finds the rows of Parquet files by key: 24 bytes of memory for each, and one row group at a time while reading.

    A key that several files have is found in the last of them. A file that cannot be read raises BrdError, or is told
    to ``failed`` and passed over.
    """

    def __init__(self, files: Sequence[Path], failed: Callable[[Path, BrdError], None] = _raised) -> None:
        self._failed = failed
        self._index = KeyIndex()
        # Each row group: its file, its number there and how many rows it has.
        self._groups: list[tuple[Path, int, int]] = []
        for path in files:
            with self._reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
                if "key" not in file.schema_arrow.names:
                    raise Damaged(path, "it has no column 'key'")
                about = file.metadata
                # Both from the file as it is opened here: somebody else may put another in its place.
                self._index.add(file.read(["key"])["key"].to_pylist())
                self._groups += [(path, n, about.row_group(n).num_rows) for n in range(about.num_row_groups)]
        self._starts = np.array([0, *accumulate(rows for *_, rows in self._groups)])

    def __len__(self) -> int:
        """Rows of all files, whether or not their key occurs once."""
        return int(self._starts[-1])

    def where(self, keys: Sequence[str]) -> Rows:
        """The rows of these keys, over all files laid end to end; -1 for a key that is not there."""
        return self._index.rows(keys)

    def tables(self, rows: Rows, columns: Sequence[str] | None = None) -> Iterator[tuple[Path, pa.Table]]:
        """These rows (ascending), those of a row group in one table, each with its file."""
        cuts = np.searchsorted(rows, self._starts)
        for number, (path, group, _) in enumerate(self._groups):
            if len(inside := rows[cuts[number] : cuts[number + 1]]):
                table: pa.Table | None = None
                with self._reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
                    of_group = file.read_row_group(group, columns=columns)
                    table = of_group.take(pa.array(inside - self._starts[number]))
                if table is not None:
                    yield path, table

    def readings(self, rows: Rows) -> Iterator[Reading]:
        """The readings of these rows (ascending)."""
        for _, table in self.tables(rows):
            yield from readings_of(table)

    @contextlib.contextmanager
    def _reading(self, path: Path) -> Iterator[None]:
        try:
            with named(path):
                yield
        except BrdError as error:
            self._failed(path, error)
