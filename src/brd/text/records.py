"""JSON lines and Parquet files (compressed or not) and Hub datasets to records: a document's id, text and language."""

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brd.errors import BrdError
from brd.sections.text import Text
from brd.text.lines import COMPRESSIONS, REPLACE_HINT, chunks, lines

_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Record:
    """A document before it is cut into paragraphs; ``language`` is what its field ``text.language_field`` holds, empty
    where it is not known."""

    document: str
    text: str
    language: str = ""


@dataclass(slots=True)
class _Names:
    """The documents' ids: the place of a record in its file or dataset, or what its field ``text.id_field`` holds."""

    place: str
    settings: Text
    number: int = field(default=0, init=False)
    last: str | None = field(default=None, init=False)

    def next(self, value: object, where: str) -> str:
        number, self.number = self.number, self.number + 1
        key = self.settings.id_field
        if key is None:
            return f"{self.place}#{number}"
        if not (isinstance(value, str) and value) and (not isinstance(value, int) or isinstance(value, bool)):
            raise BrdError(
                f"{where}: field {key!r} is no id: text or a whole number should stand there (text.id_field)"
            )
        if (name := str(value)) == self.last:
            raise BrdError(
                f"{where}: field {key!r} is {name!r} as in the record before; text.id_field should name a field that "
                "tells documents apart"
            )
        self.last = name
        return name


def jsonl(path: Path, name: str, settings: Text) -> Iterator[Record]:
    """The records of a JSON lines file; ``name`` stands for it in ids. Raises BrdError with file and line."""
    key, names = settings.id_field, _Names(name, settings)
    for number, line in lines(path, settings.encoding_errors):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise BrdError(f"{where}: not valid JSON; each line should be one object") from None
        if not isinstance(record, dict):
            raise BrdError(f"{where}: should be a JSON object with a field {settings.field!r}")
        _check_fields(record, where, settings)
        value = _whole(record[key], where, key, settings) if key else None
        text = _whole(record[settings.field], where, settings.field, settings)
        yield Record(names.next(value, where), text, _language(record.get(settings.language_field), where, settings))


def _check_fields(record: dict[str, Any], where: str, settings: Text) -> None:
    there = f"(there are {', '.join(map(repr, record)) or 'none'})"
    if not isinstance(record.get(settings.field), str):
        what = "is not text" if settings.field in record else f"is missing {there}"
        raise BrdError(f"{where}: field {settings.field!r} {what}; text.field names the one with the text")
    if settings.id_field and settings.id_field not in record:
        raise BrdError(f"{where}: field {settings.id_field!r} is missing {there}; text.id_field names the one with ids")
    if settings.language_field and settings.language_field not in record:
        raise BrdError(
            f"{where}: field {settings.language_field!r} is missing {there}; text.language_field names the one with "
            "the language, which may be null"
        )


def _language(value: Any, where: str, settings: Text) -> str:
    if not isinstance(value, str | None):
        raise BrdError(f"{where}: field {settings.language_field!r} should be the code of a language, such as de")
    return value or ""


def _whole(value: Any, where: str, key: str, settings: Text) -> Any:
    """The same value; JSON can spell half a surrogate pair, which no UTF-8 file can hold."""
    if not isinstance(value, str) or value.isascii() or not _SURROGATE.search(value):
        return value
    if settings.encoding_errors == "strict":
        raise BrdError(f"{where}: field {key!r} has half a surrogate pair; mend it, or {REPLACE_HINT}")
    return _SURROGATE.sub("\ufffd", value)


def parquet(path: Path, name: str, settings: Text) -> Iterator[Record]:
    """The records of a Parquet file; a compressed one is unpacked to a temporary file first. Raises BrdError."""
    import pyarrow as pa

    try:
        if path.suffix.lower() not in COMPRESSIONS:
            yield from _rows(path, path, name, settings)
            return
        with tempfile.NamedTemporaryFile(suffix=".parquet") as scratch:
            for chunk in chunks(path):
                scratch.write(chunk)
            scratch.flush()
            yield from _rows(path, Path(scratch.name), name, settings)
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BrdError(f"{path}: not a Parquet file, or damaged ({reason[:200]})") from None


def _rows(path: Path, unpacked: Path, name: str, settings: Text) -> Iterator[Record]:
    import pyarrow.parquet as pq

    asked = {"field": settings.field, "id_field": settings.id_field, "language_field": settings.language_field}
    keys = {key: column for key, column in asked.items() if column}
    names = _Names(name, settings)
    with pq.ParquetFile(unpacked) as file:
        for key, column in keys.items():
            if column not in file.schema_arrow.names:
                there = ", ".join(file.schema_arrow.names)
                what = {"field": "the text", "id_field": "ids"}.get(key, "the language")
                raise BrdError(
                    f"{path}: has no column {column!r} (there are {there}); text.{key} names the one with {what}"
                )
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=list(dict.fromkeys(keys.values()))):
            columns = [
                _values(batch.column(column), path, number, settings) if column else [None] * len(batch)
                for column in asked.values()
            ]
            for text, value, language in zip(*columns, strict=True):
                where = f"{path}: row {number}"
                if not isinstance(text, str):
                    raise BrdError(f"{where}: column {settings.field!r} is not text")
                yield Record(names.next(value, where), text, _language(language, where, settings))
                number += 1


def _values(column: Any, path: Path, first: int, settings: Text) -> list[Any]:
    import pyarrow as pa

    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        raw = column.cast(pa.large_binary()).to_pylist()
        return [
            None if value is None else _decoded(value, f"{path}: row {row}", settings)
            for row, value in enumerate(raw, first)
        ]


def _decoded(raw: bytes, where: str, settings: Text) -> str:
    try:
        return raw.decode("utf-8", settings.encoding_errors)
    except UnicodeDecodeError:
        raise BrdError(f"{where}: not UTF-8 text; convert the file, or {REPLACE_HINT}") from None


def hub(source: str, settings: Text) -> Iterator[Record]:
    """The records of a dataset of the Hub (``hub:NAME``), streamed. Raises BrdError."""
    name = source.removeprefix("hub:")
    names = _Names(name, settings)
    try:
        from datasets import load_dataset

        dataset = load_dataset(name, settings.subset, split=settings.split, revision=settings.revision, streaming=True)
        for number, record in enumerate(dataset):
            text, there = record.get(settings.field), ", ".join(record)
            if not isinstance(text, str):
                raise BrdError(
                    f"{source}: record {number} has no text in field {settings.field!r} (there are {there}); "
                    "text.field names the one with the text"
                )
            if settings.id_field and settings.id_field not in record:
                raise BrdError(
                    f"{source}: record {number} has no field {settings.id_field!r} (there are {there}); "
                    "text.id_field names the one with ids"
                )
            where = f"{source}: record {number}"
            language = _language(record.get(settings.language_field), where, settings)
            yield Record(names.next(record.get(settings.id_field), where), text, language)
    except BrdError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BrdError(f"{source}: the dataset could not be loaded ({reason[:200]})") from None
