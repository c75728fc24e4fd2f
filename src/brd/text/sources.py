"""Any corpus to a stream of paragraphs: text, JSON lines and Parquet files (compressed or not), Hub datasets.

Nothing is held in memory but a piece of the file and the paragraph in hand (for JSON lines: the record, for Parquet: a
batch of rows); so a giant line takes its own size, a few times over. A file's line breaks are ``\\n`` and ``\\r\\n``
only: a form feed or U+2028 is part of its line. Only the line break is taken off; a line of white space is blank. A
byte order mark at the start of a file is dropped.
"""

import codecs
import glob
import gzip
import hashlib
import json
import lzma
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import IO, Any

import zstandard

from brd.errors import BrdError
from brd.sections.text import Text

PASSAGES = Path(__file__).parent / "passages"
FORMATS = (".txt", ".jsonl", ".parquet")
COMPRESSIONS = (".gz", ".xz", ".zst")
# Files up to this size are fingerprinted by all of their content, larger ones by their ends, size and time.
WHOLE = 64 * 2**20
CHUNK = 2**20
# What is unpacked at once: smaller, for it may grow many times.
PACKED_CHUNK = 2**16
# The largest window that zstd can write (`zstd --ultra --long=31`); memory is taken only for such files.
ZSTD_WINDOW = 2**31

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_REPLACE_HINT = "set text.encoding_errors: replace"


@dataclass(frozen=True, slots=True)
class Paragraph:
    """``document`` names the source text (book, article) independently of the machine; ``index`` counts within it.

    ``language`` is what its record or file says of it, as written there; empty where nothing does.
    """

    document: str
    index: int
    text: str
    language: str = ""


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    name: str
    layout: str


def paragraphs(settings: Text) -> Iterator[Paragraph]:
    """The corpus of a recipe, paragraph by paragraph, in the order of its sources and of the files' names, or (order
    shuffled) in the order of a hash of document and number, which is the same in every run and on every machine.

    A file that several sources name is read once, so that no text is in both parts of the held-out split. Raises
    BrdError, with file and line where there is one, for whatever cannot be read: before the first paragraph when a
    source is missing, at the end of the stream when there was no paragraph at all.
    """
    stream = _in_corpus_order(settings)
    if settings.order == "shuffled":
        stream = iter(sorted(stream, key=_rank))
    found = False
    for paragraph in stream:
        found = True
        yield paragraph
    if not found:
        raise BrdError(f"text.source: the corpus is empty ({', '.join(_sources(settings))})")


def _in_corpus_order(settings: Text) -> Iterator[Paragraph]:
    for place in _places(settings):
        yield from _hub(settings, place) if isinstance(place, str) else _local(settings, place)


def _rank(paragraph: Paragraph) -> bytes:
    return hashlib.sha256(f"{paragraph.document}\0{paragraph.index}".encode()).digest()


def fingerprint(settings: Text) -> str:
    """A hash that changes when the corpus does: names and content of files (of files beyond 64 MiB size, time and both
    ends), name, subset, split and revision of a Hub dataset. Raises BrdError for what is missing."""
    parts: list[str] = []
    for place in _places(settings):
        if isinstance(place, str):
            parts += [place, str(settings.subset), settings.split, str(settings.revision)]
        else:
            parts += [place.name, place.layout, _content_hash(place.path)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _sources(settings: Text) -> list[str]:
    return [settings.source] if isinstance(settings.source, str) else settings.source


def _places(settings: Text) -> list[str | _File]:
    """Hub names and files of all sources, each once; a name that an earlier source has too gets its source's number."""
    places: dict[str | Path, str | _File] = {}
    taken: set[str] = set()
    for number, source in enumerate(_sources(settings), start=1):
        if source.startswith("hub:"):
            places.setdefault(source, source)
            continue
        for file in _files(source, settings.layout):
            if (real := file.path.resolve()) in places:
                continue
            # The file system allows names that are not UTF-8; a document's id is to be text.
            name = os.fsencode(file.name).decode("utf-8", "backslashreplace")
            name = f"{number}:{name}" if name in taken else name
            taken.add(name)
            places[real] = replace(file, name=name)
    return list(places.values())


def _content_hash(path: Path) -> str:
    try:
        stat = path.stat()
        with path.open("rb") as file:
            if stat.st_size <= WHOLE:
                return hashlib.file_digest(file, "sha256").hexdigest()
            digest = hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns}".encode())
            digest.update(file.read(2**20))
            file.seek(-(2**20), 2)
            digest.update(file.read())
            return digest.hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from None


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
        base = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
        for match in matches:
            _check_format(match)
        return [_File(p, p.relative_to(base).as_posix(), layout) for p in matches]
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


def _local(settings: Text, file: _File) -> Iterator[Paragraph]:
    kind, language = _format(file.path), _language_of(settings, file.name)
    if kind == ".txt":
        lines = (line for _, line in _lines(file.path, settings.encoding_errors))
        layout = _line_layout if file.layout == "line" else _blocks
        yield from layout(file.name, lines, language)
    else:
        records = _jsonl(file.path, settings) if kind == ".jsonl" else _parquet(file.path, settings)
        for number, text, said in records:
            yield from _record(f"{file.name}#{number}", text, file.layout, said or language)


def _language_of(settings: Text, name: str) -> str:
    """The language of the first pattern that matches a file's name, as documents are named (not a machine's path)."""
    return next((code for pattern, code in settings.language_of.items() if fnmatchcase(name, pattern)), "")


def _language_said(value: Any, where: str, settings: Text) -> str:
    """The language in a record's field; null where it is not known."""
    if not isinstance(value, str | None):
        raise BrdError(f"{where}: field {settings.language_field!r} should be the code of a language, such as de")
    return value or ""


def _record(document: str, text: str, layout: str, language: str) -> Iterator[Paragraph]:
    """A record's text is one document, whatever the layout."""
    lines = text.replace("\r\n", "\n").split("\n")
    if layout == "blank_line":
        yield from _blocks(document, lines, language)
    else:
        kept = (line for line in lines if line.strip())
        yield from (Paragraph(document, index, line, language) for index, line in enumerate(kept))


def _line_layout(name: str, lines: Iterable[str], language: str) -> Iterator[Paragraph]:
    """CC-100's layout: a paragraph a line, a blank line between documents."""
    document = index = 0
    for line in lines:
        if line.strip():
            yield Paragraph(f"{name}#{document}", index, line, language)
            index += 1
        elif index:
            document, index = document + 1, 0


def _blocks(document: str, lines: Iterable[str], language: str) -> Iterator[Paragraph]:
    """Paragraphs between blank lines; line breaks inside a paragraph stay."""
    block: list[str] = []
    index = 0
    for line in lines:
        if line.strip():
            block.append(line)
        elif block:
            yield Paragraph(document, index, "\n".join(block), language)
            index, block = index + 1, []
    if block:
        yield Paragraph(document, index, "\n".join(block), language)


def _lines(path: Path, errors: str) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends."""
    number = 0

    def decoded(raw: bytes) -> str:
        try:
            return raw.removesuffix(b"\r").decode("utf-8", errors)
        except UnicodeDecodeError as error:
            raise BrdError(
                f"{path}:{number}: not UTF-8 text (byte {error.start + 1} of the line); convert the file, or "
                f"{_REPLACE_HINT}"
            ) from None

    # The pieces of a line that has not ended yet: joined once, or a giant line would be copied with every piece.
    begun: list[bytes] = []

    def joined(*last: bytes) -> bytes:
        line = b"".join([*begun, *last])
        begun.clear()
        return line if number else line.removeprefix(codecs.BOM_UTF8)

    for chunk in _chunks(path):
        *ended, rest = chunk.split(b"\n")
        if ended:
            ended[0] = joined(ended[0])
        for raw in ended:
            number += 1
            yield number, decoded(raw)
        begun.append(rest)
    if raw := joined():
        number += 1
        yield number, decoded(raw)


def _chunks(path: Path) -> Iterator[bytes]:
    """The decompressed content in pieces; concatenated members are read to the end."""
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as raw:
            if suffix in COMPRESSIONS and not path.stat().st_size:
                raise EOFError
            match suffix:
                case ".gz":
                    with gzip.open(raw) as file:
                        yield from iter(partial(file.read, CHUNK), b"")
                case ".xz":
                    # Not lzma.open: it takes a damaged or padded later member for the end of the file.
                    yield from _members(raw, lzma.LZMADecompressor, padding=b"\0")
                case ".zst":
                    zstd = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
                    yield from _members(raw, zstd.decompressobj)
                case _:
                    yield from iter(partial(raw.read, CHUNK), b"")
    except EOFError:
        raise BrdError(f"{path}: ends too early; the file is truncated (fetch or compress it again)") from None
    except (gzip.BadGzipFile, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise BrdError(f"{path}: damaged, or not what its suffix says ({error})") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> BrdError:
    return BrdError(f"{path}: cannot be read ({error.strerror or error})")


def _members(raw: IO[bytes], start: Callable[[], Any], padding: bytes = b"") -> Iterator[bytes]:
    """The content of all members of an xz or zstd file; raises EOFError when the last has no end."""
    member: Any = None
    while chunk := raw.read(PACKED_CHUNK):
        while chunk:
            if member is None:
                if not (chunk := chunk.lstrip(padding)):
                    break
                member = start()
            yield member.decompress(chunk)
            chunk, member = (member.unused_data, None) if member.eof else (b"", member)
    if member is not None:
        raise EOFError


def _jsonl(path: Path, settings: Text) -> Iterator[tuple[int, str, str]]:
    """Numbered texts of a JSON lines file (the first record is 0), with the languages that the records say."""
    field, language_field = settings.field, settings.language_field
    record_number = 0
    for number, line in _lines(path, settings.encoding_errors):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise BrdError(f"{path}:{number}: not valid JSON; each line should be one object") from None
        if not isinstance(record, dict):
            raise BrdError(f"{path}:{number}: should be a JSON object with a field {field!r}")
        if not isinstance(record.get(field), str):
            what = (
                "is not text" if field in record else f"is missing (there are {', '.join(map(repr, record)) or 'none'})"
            )
            raise BrdError(f"{path}:{number}: field {field!r} {what}; text.field names the one with the text")
        text = record[field]
        # JSON can spell half a surrogate pair, which no UTF-8 file can hold.
        if not text.isascii() and _SURROGATE.search(text):
            if settings.encoding_errors == "strict":
                raise BrdError(
                    f"{path}:{number}: field {field!r} has half a surrogate pair; mend it, or {_REPLACE_HINT}"
                )
            text = _SURROGATE.sub("\ufffd", text)
        said = ""
        if language_field is not None:
            if language_field not in record:
                raise BrdError(
                    f"{path}:{number}: field {language_field!r} is missing (there are {', '.join(map(repr, record))}); "
                    "text.language_field names the one with the language, which may be null"
                )
            said = _language_said(record[language_field], f"{path}:{number}", settings)
        yield record_number, text, said
        record_number += 1


def _parquet(path: Path, settings: Text) -> Iterator[tuple[int, str, str]]:
    """The same of a Parquet file; a compressed one is unpacked to a temporary file first."""
    import pyarrow as pa

    try:
        if path.suffix.lower() not in COMPRESSIONS:
            yield from _rows(path, path, settings)
            return
        with tempfile.NamedTemporaryFile(suffix=".parquet") as scratch:
            for chunk in _chunks(path):
                scratch.write(chunk)
            scratch.flush()
            yield from _rows(path, Path(scratch.name), settings)
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BrdError(f"{path}: not a Parquet file, or damaged ({reason[:200]})") from None


def _rows(path: Path, unpacked: Path, settings: Text) -> Iterator[tuple[int, str, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    field = settings.field
    with pq.ParquetFile(unpacked) as file:
        columns = {"field": field} | ({"language_field": settings.language_field} if settings.language_field else {})
        for key, name in columns.items():
            if name not in file.schema_arrow.names:
                names, what = ", ".join(file.schema_arrow.names), "text" if key == "field" else "language"
                raise BrdError(
                    f"{path}: has no column {name!r} (there are {names}); text.{key} names the one with the {what}"
                )
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=list(dict.fromkeys(columns.values()))):
            column = batch.column(field)
            try:
                texts = column.to_pylist()
            except UnicodeDecodeError:
                raw = column.cast(pa.large_binary()).to_pylist()
                texts = [
                    None if value is None else _decoded(value, f"{path}: row {row}", settings)
                    for row, value in enumerate(raw, number)
                ]
            said = batch.column(settings.language_field).to_pylist() if settings.language_field else [""] * len(texts)
            for text, language in zip(texts, said, strict=True):
                if not isinstance(text, str):
                    raise BrdError(f"{path}: row {number}: column {field!r} is not text")
                yield number, text, _language_said(language, f"{path}: row {number}", settings)
                number += 1


def _decoded(raw: bytes, where: str, settings: Text) -> str:
    try:
        return raw.decode("utf-8", settings.encoding_errors)
    except UnicodeDecodeError:
        raise BrdError(f"{where}: not UTF-8 text; convert the file, or {_REPLACE_HINT}") from None


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
                    f"{source}: record {number} has no text in field {settings.field!r} (there are "
                    f"{', '.join(record)}); text.field names the one with the text"
                )
            said = ""
            if settings.language_field is not None:
                said = _language_said(record.get(settings.language_field), f"{source}: record {number}", settings)
            yield from _record(f"{name}#{number}", text, settings.layout, said or _language_of(settings, source))
    except BrdError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BrdError(f"{source}: the dataset could not be loaded ({reason[:200]})") from None
