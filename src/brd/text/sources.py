"""Any corpus to a stream of paragraphs: text, JSON lines and Parquet files (compressed or not), Hub datasets.

Nothing is held in memory but the paragraph in hand (for JSON lines and Parquet: the record). A file's line breaks are
``\\n`` and ``\\r\\n`` only; a byte order mark at its start is dropped.
"""

import codecs
import glob
import gzip
import hashlib
import json
import lzma
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import zstandard

from brd.errors import BrdError
from brd.recipe import Text

PASSAGES = Path(__file__).parent / "passages"
FORMATS = (".txt", ".jsonl", ".parquet")
COMPRESSIONS = (".gz", ".xz", ".zst")
# Files up to this size are fingerprinted by all of their content, larger ones by their ends, size and time.
WHOLE = 64 * 2**20
CHUNK = 2**20


@dataclass(frozen=True, slots=True)
class Paragraph:
    """``document`` names the source text (book, article) independently of the machine; ``index`` counts within it."""

    document: str
    index: int
    text: str


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    name: str
    layout: str


def paragraphs(settings: Text) -> Iterator[Paragraph]:
    """The corpus of a recipe, paragraph by paragraph, in the order of its sources and of the files' names.

    Raises BrdError, with file and line where there is one, for whatever cannot be read, and at the end of the stream
    when there was no paragraph at all.
    """
    found = False
    for source in _sources(settings):
        stream = _hub(settings, source) if source.startswith("hub:") else _local(settings, source)
        for paragraph in stream:
            found = True
            yield paragraph
    if not found:
        raise BrdError(f"text.source: the corpus is empty ({', '.join(_sources(settings))})")


def fingerprint(settings: Text) -> str:
    """A hash that changes when the corpus does."""
    parts: list[str] = []
    for source in _sources(settings):
        if source.startswith("hub:"):
            parts += [source, str(settings.subset), settings.split, str(settings.revision)]
            continue
        for file in _files(source, settings.layout):
            parts += [file.name, file.layout, _content_hash(file.path)]
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()


def _sources(settings: Text) -> list[str]:
    return [settings.source] if isinstance(settings.source, str) else settings.source


def _content_hash(path: Path) -> str:
    stat = path.stat()
    with path.open("rb") as file:
        if stat.st_size <= WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns}".encode())
        digest.update(file.read(2**20))
        file.seek(-(2**20), 2)
        digest.update(file.read())
        return digest.hexdigest()


def _files(source: str, layout: str) -> list[_File]:
    """The files of a path, folder or glob, sorted by name; each with a name that no machine's paths are part of."""
    if source == "passages":
        return [_File(p, f"passages/{p.name}", "blank_line") for p in sorted(PASSAGES.glob("*.txt"))]
    path = Path(source)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and _format(p))
        if not found:
            raise BrdError(f"{source}: the folder has no file that can be read ({_supported()})")
        return [_File(p, p.relative_to(path).as_posix(), layout) for p in found]
    if glob.has_magic(source) and not path.exists():
        matches = sorted(p for p in map(Path, glob.glob(source, recursive=True)) if p.is_file())
        if not matches:
            raise BrdError(f"{source}: no file matches")
        fixed = [part for part in path.parts if not glob.has_magic(part)]
        base = Path(*fixed) if path.parts[: len(fixed)] == tuple(fixed) else path.parent
        names = [p.relative_to(base).as_posix() if p.is_relative_to(base) else p.name for p in matches]
        for match in matches:
            _check_format(match)
        return [_File(p, name, layout) for p, name in zip(matches, names, strict=True)]
    if not path.is_file():
        raise BrdError(f"{source}: no such file or folder")
    _check_format(path)
    return [_File(path, path.name, layout)]


def _format(path: Path) -> str | None:
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def _check_format(path: Path) -> None:
    if _format(path) is None:
        raise BrdError(f"{path}: cannot be read by its name ({_supported()})")


def _supported() -> str:
    return f"known: {', '.join(FORMATS)}, also with {', '.join(COMPRESSIONS)}"


def _local(settings: Text, source: str) -> Iterator[Paragraph]:
    for file in _files(source, settings.layout):
        kind = _format(file.path)
        if kind == ".txt":
            lines = (line for _, line in _lines(file.path, settings.encoding_errors))
            yield from _line_layout(file.name, lines) if file.layout == "line" else _blocks(file.name, lines)
        else:
            records = _jsonl(file.path, settings) if kind == ".jsonl" else _parquet(file.path, settings.field)
            for number, text in records:
                yield from _record(f"{file.name}#{number}", text, file.layout)


def _record(document: str, text: str, layout: str) -> Iterator[Paragraph]:
    """A record's text is one document, whatever the layout."""
    lines = text.replace("\r\n", "\n").split("\n")
    if layout == "blank_line":
        yield from _blocks(document, lines)
    else:
        kept = (line for line in lines if line.strip())
        yield from (Paragraph(document, index, line) for index, line in enumerate(kept))


def _line_layout(name: str, lines: Iterable[str]) -> Iterator[Paragraph]:
    """CC-100's layout: a paragraph a line, a blank line between documents."""
    document = index = 0
    for line in lines:
        if line.strip():
            yield Paragraph(f"{name}#{document}", index, line)
            index += 1
        elif index:
            document, index = document + 1, 0


def _blocks(document: str, lines: Iterable[str]) -> Iterator[Paragraph]:
    """Paragraphs between blank lines; line breaks inside a paragraph stay."""
    block: list[str] = []
    index = 0
    for line in lines:
        if line.strip():
            block.append(line)
        elif block:
            yield Paragraph(document, index, "\n".join(block))
            index, block = index + 1, []
    if block:
        yield Paragraph(document, index, "\n".join(block))


def _lines(path: Path, errors: str) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends."""
    number, rest, bom = 0, b"", codecs.BOM_UTF8

    def decoded(raw: bytes) -> str:
        try:
            return raw.removesuffix(b"\r").decode("utf-8", errors)
        except UnicodeDecodeError as error:
            raise BrdError(
                f"{path}:{number}: not UTF-8 text (byte {error.start + 1} of the line); convert the file, or set "
                "text.encoding_errors: replace"
            ) from None

    for chunk in _chunks(path):
        first, *more = chunk.split(b"\n")
        rest += first
        for following in more:
            number += 1
            yield number, decoded(rest.removeprefix(bom) if number == 1 else rest)
            rest = following
    if rest:
        number += 1
        yield number, decoded(rest.removeprefix(bom) if number == 1 else rest)


def _chunks(path: Path) -> Iterator[bytes]:
    """The decompressed content in pieces; concatenated members are read to the end."""
    try:
        with path.open("rb") as raw:
            match path.suffix.lower():
                case ".gz":
                    with gzip.open(raw) as file:
                        yield from iter(partial(file.read, CHUNK), b"")
                case ".xz":
                    with lzma.open(raw) as file:
                        yield from iter(partial(file.read, CHUNK), b"")
                case ".zst":
                    yield from _zstd(raw)
                case _:
                    yield from iter(partial(raw.read, CHUNK), b"")
    except EOFError:
        raise BrdError(f"{path}: ends too early; the file is truncated (fetch or compress it again)") from None
    except (gzip.BadGzipFile, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise BrdError(f"{path}: damaged, or not what its suffix says ({error})") from None
    except OSError as error:
        raise BrdError(f"{path}: cannot be read ({error.strerror or error})") from None


def _zstd(raw: IO[bytes]) -> Iterator[bytes]:
    frame: Any = None
    while chunk := raw.read(CHUNK):
        while chunk:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(chunk)
            chunk, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise EOFError


def _jsonl(path: Path, settings: Text) -> Iterator[tuple[int, str]]:
    """Numbered texts of a JSON lines file (the first record is 0)."""
    field = settings.field
    record_number = 0
    for number, line in _lines(path, settings.encoding_errors):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            raise BrdError(f"{path}:{number}: not valid JSON; each line should be one object") from None
        if not isinstance(record, dict):
            raise BrdError(f"{path}:{number}: should be a JSON object with a field {field!r}")
        if not isinstance(record.get(field), str):
            what = (
                "is not text" if field in record else f"is missing (there are {', '.join(map(repr, record)) or 'none'})"
            )
            raise BrdError(f"{path}:{number}: field {field!r} {what}; text.field names the one with the text")
        yield record_number, record[field]
        record_number += 1


def _parquet(path: Path, field: str) -> Iterator[tuple[int, str]]:
    """Numbered texts of a Parquet file; a compressed one is unpacked to a temporary file first."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix.lower() in COMPRESSIONS:
        with tempfile.NamedTemporaryFile(suffix=".parquet") as scratch:
            for chunk in _chunks(path):
                scratch.write(chunk)
            scratch.flush()
            yield from _parquet(Path(scratch.name), field)
        return
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError):
        raise BrdError(f"{path}: not a Parquet file, or damaged") from None
    with file:
        if field not in file.schema_arrow.names:
            names = ", ".join(file.schema_arrow.names)
            raise BrdError(
                f"{path}: has no column {field!r} (there are {names}); text.field names the one with the text"
            )
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=[field]):
            for text in batch.column(0).to_pylist():
                if not isinstance(text, str):
                    raise BrdError(f"{path}: row {number}: column {field!r} is not text")
                yield number, text
                number += 1


def _hub(settings: Text, source: str) -> Iterator[Paragraph]:
    """A dataset of the Hub, streamed; each record is a document."""
    name = source.removeprefix("hub:")
    try:
        from datasets import load_dataset

        dataset = load_dataset(name, settings.subset, split=settings.split, revision=settings.revision, streaming=True)
        for number, record in enumerate(dataset):
            text = record.get(settings.field)
            if not isinstance(text, str):
                raise BrdError(
                    f"{source}: record {number} has no text in field {settings.field!r} ({', '.join(record)})"
                )
            yield from _record(f"{name}#{number}", text, settings.layout)
    except BrdError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BrdError(f"{source}: the dataset could not be loaded ({reason[:200]})") from None
