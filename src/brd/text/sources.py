"""Any corpus to a stream of paragraphs: text, JSON lines and Parquet files (compressed or not), Hub datasets.

Nothing is held in memory but a piece of the file and the paragraph in hand (for JSON lines: the record, for Parquet: a
batch of rows). A line of white space is blank.
"""

import glob
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path

from brd.errors import BrdError
from brd.sections.text import Text
from brd.text.lines import COMPRESSIONS, content_hash, lines
from brd.text.paragraph import Paragraph
from brd.text.records import Record, hub, jsonl, parquet

PASSAGES = Path(__file__).parent / "passages"
FORMATS = (".txt", ".jsonl", ".parquet")


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    name: str
    layout: str


def paragraphs(
    settings: Text, through: Callable[[Iterator[Paragraph]], Iterator[Paragraph]] | None = None
) -> Iterator[Paragraph]:
    """The corpus of a recipe, paragraph by paragraph, in the order of its sources and of the files' names, or (order
    shuffled) in the order of a hash of document and number, which is the same in every run and on every machine.

    ``through`` takes the stream in the order of the corpus and gives what is to be left of it, before any shuffling.
    A file that several sources name is read once, so that no text is in both parts of the held-out split. Raises
    BrdError, with file and line where there is one, for whatever cannot be read: before the first paragraph when a
    source is missing, at the end of the stream when there was no paragraph at all.
    """
    stream = _in_corpus_order(settings)
    if through is not None:
        stream = through(stream)
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
        if isinstance(place, str):
            yield from _cut(hub(place, settings), settings.layout, file_language(settings, place))
        else:
            yield from _local(settings, place)


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
            parts += [place.name, place.layout, content_hash(place.path)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def unpinned(settings: Text) -> list[str]:
    """The Hub datasets among the sources whose content may change, for no revision is named."""
    return [] if settings.revision else [source for source in _sources(settings) if source.startswith("hub:")]


def places(settings: Text) -> list[tuple[str, Path | None, str]]:
    """Where the corpus lies, in its order: (name, file, layout), a dataset of the Hub without a file."""
    return [(p, None, settings.layout) if isinstance(p, str) else (p.name, p.path, p.layout) for p in _places(settings)]


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
    kind, language = _format(file.path), file_language(settings, file.name)
    if kind == ".txt":
        text = (line for _, line in lines(file.path, settings.encoding_errors))
        layout = _line_layout if file.layout == "line" else _blocks
        yield from layout(file.name, text, language)
    else:
        records = (jsonl if kind == ".jsonl" else parquet)(file.path, file.name, settings)
        yield from _cut(records, file.layout, language)


def file_language(settings: Text, name: str) -> str:
    """The language of the first pattern of ``text.language_of`` that matches a file's name, as documents are named (not
    a machine's path); empty where none does."""
    return next((code for pattern, code in settings.language_of.items() if fnmatchcase(name, pattern)), "")


def _cut(records: Iterable[Record], layout: str, language: str) -> Iterator[Paragraph]:
    """A record's text is one document, whatever the layout; ``language`` is that of records that do not say theirs."""
    for record in records:
        text, said = record.text.replace("\r\n", "\n").split("\n"), record.language or language
        if layout == "blank_line":
            yield from _blocks(record.document, text, said)
        else:
            kept = (line for line in text if line.strip())
            yield from (Paragraph(record.document, index, line, said) for index, line in enumerate(kept))


def _line_layout(name: str, text: Iterable[str], language: str) -> Iterator[Paragraph]:
    """CC-100's layout: a paragraph a line, a blank line between documents."""
    document = index = 0
    for line in text:
        if line.strip():
            yield Paragraph(f"{name}#{document}", index, line, language)
            index += 1
        elif index:
            document, index = document + 1, 0


def _blocks(document: str, text: Iterable[str], language: str) -> Iterator[Paragraph]:
    """Paragraphs between blank lines; line breaks inside a paragraph stay."""
    block: list[str] = []
    index = 0
    for line in text:
        if line.strip():
            block.append(line)
        elif block:
            yield Paragraph(document, index, "\n".join(block), language)
            index, block = index + 1, []
    if block:
        yield Paragraph(document, index, "\n".join(block), language)
