"""Pieces of a corpus that is too large to be gone through: evenly spread over its bytes, cut at its own breaks.

Text and JSON lines are sought into, of Parquet the row groups are read that are met. A compressed file cannot be
sought into: as many pieces as would lie in it are taken from its beginning.
"""

import io
import json
import lzma
import tempfile
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import IO, Any

import zstandard

from brd.errors import BrdError
from brd.sections.text import Text
from brd.text.lines import COMPRESSIONS, PACKED_CHUNK, ZSTD_WINDOW
from brd.text.sources import paragraphs, places

# The longest line that a piece is waited to end with.
LONGEST_LINE = 64 * 2**20
# Of a compressed file, so much more than its pieces is unpacked, for lines that go on.
READ_ON = 2**16
# Of a dataset of the Hub: paragraphs of its beginning.
HUB_PARAGRAPHS = 5000


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of one file, written to a file of its own.

    ``held`` bytes of the ``weight`` bytes (on disk) that it stands for are in it; ``weight`` is None where nobody knows
    how much there is (the Hub). ``size`` is its length as text. ``one_document``: the whole file is one document.
    """

    place: str
    offset: int
    weight: float | None
    held: float
    size: int
    one_document: bool


def is_packed(path: Path) -> bool:
    return path.suffix.lower() in COMPRESSIONS


def cut(text: Text, folder: Path, pieces: int, size: int) -> list[Piece]:
    """Write about ``pieces`` pieces of ``size`` bytes into ``folder``, named by their numbers, in corpus order.

    Raises BrdError for what cannot be read.
    """
    found = places(text)
    sizes = [_size(path) if path else 0 for _, path, _ in found]
    ends = list(accumulate(sizes))
    total = ends[-1] if ends else 0
    wanted: list[list[int]] = [[] for _ in found]
    width = total / pieces
    for number in range(pieces if total else 0):
        place = int((number + 0.5) * width)
        at = bisect_right(ends, place)
        wanted[at].append(place - (ends[at] - sizes[at]))
    made: list[Piece] = []
    for (name, path, layout), offsets in zip(found, wanted, strict=True):
        if path is None:
            made.append(_of_the_hub(text, name, folder, len(made)))
        elif offsets:
            made += _of_a_file(text, name, path, layout, offsets, size, width, folder, len(made))
    return made


def _of_a_file(
    text: Text,
    name: str,
    path: Path,
    layout: str,
    offsets: list[int],
    size: int,
    width: float,
    folder: Path,
    first: int,
) -> Iterator[Piece]:
    kind = next(s for s in reversed([s.lower() for s in path.suffixes]) if s not in COMPRESSIONS)
    blocks = kind == ".txt" and layout == "blank_line"
    try:
        if kind == ".parquet":
            cuts = _rows(text, path, offsets, size)
        elif is_packed(path):
            cuts = _head(path, len(offsets), size, blocks)
        else:
            cuts = _sought(path, offsets, size, blocks)
        # Where lines are longer than the way from one piece to the next, there are fewer.
        found = list(cuts)
        for number, (offset, content, held) in enumerate(found, start=first):
            suffix = ".txt" if kind == ".txt" else ".jsonl"
            (folder / f"{number:05d}{suffix}").write_bytes(content)
            yield Piece(name, offset, width * len(offsets) / len(found), held, len(content), blocks)
    except (OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise BrdError(f"{path}: cannot be read ({error})") from None


def _sought(path: Path, offsets: list[int], size: int, blocks: bool) -> Iterator[tuple[int, bytes, float]]:
    """About ``size`` bytes around each offset, from one break of the text to another, none of them twice."""
    end = 0
    with path.open("rb") as file:
        for offset in offsets:
            start = offset - size // 2
            while True:
                file.seek(max(start, end))
                if start > end:
                    _to_break(file, blocks)
                begin = file.tell()
                content = _lines(file, size, blocks)
                if content or start <= end:
                    break
                # Nothing begins after it: a long last line.
                start -= size
            if content:
                end = begin + len(content)
                yield begin, content, float(len(content))


def _to_break(file: IO[bytes], blocks: bool) -> None:
    while line := file.readline(LONGEST_LINE):
        if not blocks or not line.strip():
            return


def _lines(file: IO[bytes], size: int, blocks: bool) -> bytes:
    taken, length = [], 0
    while line := file.readline(LONGEST_LINE):
        taken.append(line)
        length += len(line)
        if length >= size and (not blocks or not line.strip() or length > LONGEST_LINE):
            break
    return b"".join(taken)


def _head(path: Path, pieces: int, size: int, blocks: bool) -> Iterator[tuple[int, bytes, float]]:
    """Pieces from the beginning of a compressed file, with the compressed bytes that they take on average."""
    head, packed = bytearray(), 0
    for fed, content in _unpacked(path):
        head += content
        packed += fed
        if len(head) > pieces * size + READ_ON:
            # Without the piece of a line at its end.
            rate = packed / len(head)
            del head[head.rfind(b"\n") + 1 :]
            break
    else:
        rate = packed / max(1, len(head))
    file, before = io.BytesIO(head), 0
    for content in islice(iter(lambda: _lines(file, size, blocks), b""), pieces):
        yield before, content, len(content) * rate
        before += len(content)


def _unpacked(path: Path) -> Iterator[tuple[int, bytes]]:
    """How many bytes of a compressed file were read, and what came out of them."""
    starts: dict[str, Callable[[], Any]] = {
        ".gz": lambda: zlib.decompressobj(31),
        ".xz": lzma.LZMADecompressor,
        ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj(),
    }
    start = starts[path.suffix.lower()]
    member: Any = None
    with path.open("rb") as raw:
        while chunk := raw.read(PACKED_CHUNK):
            fed, out = len(chunk), bytearray()
            # Zeros may stand behind a member.
            while chunk and (member is not None or (chunk := chunk.lstrip(b"\0"))):
                member = member or start()
                out += member.decompress(chunk)
                chunk, member = (member.unused_data, None) if member.eof else (b"", member)
            yield fed, bytes(out)


def _rows(text: Text, path: Path, offsets: list[int], size: int) -> Iterator[tuple[int, bytes, float]]:
    """Pieces of a Parquet file as JSON lines, from the beginning of each row group that an offset lies in."""
    with tempfile.NamedTemporaryFile(suffix=".parquet") as scratch:
        unpacked = path
        if is_packed(path):
            scratch.writelines(content for _, content in _unpacked(path))
            scratch.flush()
            unpacked = Path(scratch.name)
        yield from _of_groups(text, path, unpacked, offsets, size)


def _of_groups(
    text: Text, path: Path, unpacked: Path, offsets: list[int], size: int
) -> Iterator[tuple[int, bytes, float]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(unpacked) as file:
            columns = list(filter(None, dict.fromkeys([text.field, text.language_field])))
            if not set(columns) <= set(file.schema_arrow.names):
                # The corpus' own reader says what is wrong.
                next(paragraphs(text.model_copy(update={"source": str(path), "order": "corpus"})))
            groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
            ends = list(accumulate(groups))
            met = Counter(bisect_right(ends, min(o * ends[-1] // _size(path), ends[-1] - 1)) for o in offsets)
            for group, pieces in sorted(met.items()):
                rows = file.iter_batches(batch_size=64, row_groups=[group], columns=columns)
                values = (row for batch in rows for row in batch.to_pylist() if isinstance(row[text.field], str))
                number = ends[group] - groups[group]
                for _ in range(pieces):
                    taken, length = [], 0
                    for value in values:
                        taken.append(json.dumps(value))
                        length += len(value[text.field])
                        if length >= size:
                            break
                    if taken:
                        content = "\n".join(taken).encode()
                        yield number * _size(path) // ends[-1], content, len(taken) * _size(path) / ends[-1]
                        number += len(taken)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise BrdError(f"{path}: not a Parquet file, or damaged ({str(error)[:200]})") from None


def _of_the_hub(text: Text, name: str, folder: Path, number: int) -> Piece:
    """The beginning of a dataset, a paragraph a record."""
    stream = paragraphs(text.model_copy(update={"source": name, "order": "corpus"}))
    said = text.language_field
    records = ({**({said: p.language or None} if said else {}), text.field: p.text} for p in stream)
    lines = [json.dumps(record) for record in islice(records, HUB_PARAGRAPHS)]
    content = "\n".join(lines).encode()
    (folder / f"{number:05d}.jsonl").write_bytes(content)
    return Piece(name, 0, None, 0.0, len(content), False)


def _size(path: Path) -> int:
    return path.stat().st_size
