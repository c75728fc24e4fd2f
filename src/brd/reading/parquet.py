"""Parquet files of a run folder: written whole or not at all, checked when they are read, named when damaged."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from brd.errors import BrdError


class Damaged(BrdError):
    """A file whose content is not what was written, and ``why``."""

    def __init__(self, path: Path, why: str) -> None:
        self.why = why
        super().__init__(
            f"{path}: damaged ({why}); put a whole copy in its place, or move it away and run the same command again: "
            "only what was in this file is then asked for again"
        )


def read_table(path: Path, columns: list[str] | None = None, behavior: str | None = None) -> pa.Table:
    """A Parquet file; ``behavior`` takes only the rows of that one. Raises Damaged, and BrdError for a file that cannot
    be read at all."""
    filters = None if behavior is None else [("behavior", "==", behavior)]
    with named(path):
        table = pq.read_table(path, columns=columns, filters=filters, page_checksum_verification=True)
    if missing := [name for name in columns or () if name not in table.column_names]:
        raise Damaged(path, f"it has no column {missing[0]!r}")
    return table


def read_pieces(path: Path, rows: int) -> Iterator[pa.Table]:
    """The same, at most so many rows at a time."""
    with named(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        for batch in file.iter_batches(rows):
            yield pa.Table.from_batches([batch])


def read_note(path: Path, name: str) -> str | None:
    """What was written beside the rows under this name."""
    with named(path):
        found = (pq.read_schema(path).metadata or {}).get(name.encode())
    return None if found is None else found.decode()


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Turns what goes wrong while a file is read into one line about it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        # What the system refuses has a number; what pyarrow cannot make out has none.
        if getattr(error, "errno", None):
            raise BrdError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
        raise Damaged(path, str(error).splitlines()[0]) from None


def write_table(table: pa.Table, path: Path, notes: Mapping[str, str] | None = None) -> None:
    """Write Parquet so that the file is whole or absent. ``notes`` stand beside the rows."""
    if notes is not None:
        table = table.replace_schema_metadata(notes)
    with writer(path, table.schema) as into:
        into.write_table(table)


@contextlib.contextmanager
def writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Writes row groups to a scratch file that takes the place of ``path`` when the block has ended well."""
    scratch = path.with_name(path.name + ".tmp")
    try:
        with pq.ParquetWriter(scratch, schema, compression="zstd", write_page_checksum=True) as into:
            yield into
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
