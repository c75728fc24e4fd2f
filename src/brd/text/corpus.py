"""The corpus as every step sees it: the paragraphs of the sources that pass the recipe's filters."""

import json
import os
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from brd.errors import BrdError
from brd.sections.text import Text
from brd.text.filters import FILTERS, Context, Decision, Filter, Tests
from brd.text.lines import lines
from brd.text.paragraph import Paragraph
from brd.text.sources import paragraphs

# Decisions that are written at once.
ROWS = 10_000


@dataclass(slots=True)
class _Pass:
    """What one pass has seen so far. A document's paragraphs come one after another."""

    seen: int = 0
    kept: int = 0
    documents: int = 0
    documents_kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    documents_of: Counter[str] = field(default_factory=Counter)
    _last: str | None = None
    _last_kept: str | None = None
    _last_of: dict[str, str] = field(default_factory=dict)

    def saw(self, paragraph: Paragraph) -> None:
        self.seen += 1
        if paragraph.document != self._last:
            self.documents, self._last = self.documents + 1, paragraph.document

    def keeps(self, paragraph: Paragraph) -> None:
        self.kept += 1
        if paragraph.document != self._last_kept:
            self.documents_kept, self._last_kept = self.documents_kept + 1, paragraph.document

    def decided(self, name: str, paragraph: Paragraph, decision: Decision) -> None:
        (self.dropped if decision.text is None else self.changed)[name] += 1
        if self._last_of.get(name) != paragraph.document:
            self.documents_of[name] += 1
            self._last_of[name] = paragraph.document


class Corpus:
    """The paragraphs of a recipe's sources that its filters keep, under their own numbers.

    Each iteration is a pass of its own with the same outcome: filters see the sources in their order, whatever
    ``text.order`` says, and remember only their own pass. ``tests`` is what ``decontaminate`` looks for. Where
    ``record`` is a file, each decision (document, paragraph, filter, action, detail) is written there as Parquet by
    ``close``, which also ends the passes; of several passes what the longest one decided is kept, as the others are
    beginnings of it.
    """

    def __init__(self, settings: Text, tests: Tests | None = None, record: Path | None = None) -> None:
        self.settings = settings
        self._on = [name for name in FILTERS if name in settings.filters.on()]
        self._context = Context(settings.language, tests)
        self._record = record
        self._passes: list[Generator[Paragraph, None, None]] = []
        self._longest = _Pass()

    def __iter__(self) -> Iterator[Paragraph]:
        """Raises BrdError as ``sources.paragraphs`` does, and where the filters leave nothing."""
        if not self._on and self._record is not None:
            # What an earlier recipe decided is not true of this one.
            self._record.unlink(missing_ok=True)
        return paragraphs(self.settings, self._filtered if self._on else None)

    def __enter__(self) -> "Corpus":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the passes that are still open, so that what they decided is counted and recorded."""
        while self._passes:
            self._passes.pop().close()

    def counts(self) -> dict[str, Any]:
        """``{"corpus": ...}`` with what was seen and kept, and by filter the paragraphs dropped and changed and the
        documents that they stand in; empty where no filter is on or nothing was read. Closes the corpus."""
        self.close()
        found = self._longest
        if not found.seen:
            return {}
        counts = {
            "paragraphs_seen": found.seen,
            "paragraphs_kept": found.kept,
            "documents_seen": found.documents,
            "documents_kept": found.documents_kept,
            "filters": {
                name: {
                    "dropped": found.dropped[name],
                    "changed": found.changed[name],
                    "documents": found.documents_of[name],
                }
                for name in self._on
            },
        }
        return {"corpus": counts}

    def _filtered(self, stream: Iterator[Paragraph]) -> Iterator[Paragraph]:
        one = self._pass(stream)
        self._passes.append(one)
        return one

    def _pass(self, stream: Iterator[Paragraph]) -> Generator[Paragraph, None, None]:
        on = self.settings.filters.on()
        filters = {name: FILTERS[name](on[name], self._context) for name in self._on}
        spared = _spared(self.settings.filters.spare)
        told = _Pass()
        log = _Log(self._record)
        try:
            for paragraph in stream:
                told.saw(paragraph)
                if (paragraph.document, paragraph.index) in spared:
                    kept: Paragraph | None = paragraph
                else:
                    kept = _judged(paragraph, filters, told, log)
                if kept is not None:
                    told.keeps(kept)
                    yield kept
            if told.seen and not told.kept:
                dropped = ", ".join(f"{name} {number}" for name, number in told.dropped.items())
                raise BrdError(f"text.filters: none of {told.seen} paragraphs is left (dropped by {dropped})")
        finally:
            longest = told.seen >= self._longest.seen
            log.close(keep=longest)
            if longest:
                self._longest = told


def _judged(paragraph: Paragraph, filters: dict[str, Filter], told: _Pass, log: "_Log") -> Paragraph | None:
    for name, judge in filters.items():
        if (decision := judge.judge(paragraph)) is not None:
            told.decided(name, paragraph, decision)
            log.add(name, paragraph, decision)
            if decision.text is None:
                return None
            paragraph = replace(paragraph, text=decision.text)
    return paragraph


class _Log:
    """Decisions on their way to a Parquet file; nothing where there is no file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        # Two passes may be open at once.
        self._scratch = path and path.with_name(f"{path.name}.{id(self)}.tmp")
        self._writer: Any = None
        self._rows: list[tuple[str, int, str, str, str]] = []

    def add(self, name: str, paragraph: Paragraph, decision: Decision) -> None:
        if self._path is not None:
            action = "dropped" if decision.text is None else "changed"
            self._rows.append((paragraph.document, paragraph.index, name, action, decision.detail))
            if len(self._rows) >= ROWS:
                self._write()

    def close(self, keep: bool) -> None:
        if self._path is None or self._scratch is None:
            return
        self._write()
        self._writer.close()
        if keep:
            os.replace(self._scratch, self._path)
        else:
            self._scratch.unlink()

    def _write(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        text = pa.string()
        names = {"document": text, "paragraph": pa.int64(), "filter": text, "action": text, "detail": text}
        if self._writer is None:
            assert self._scratch is not None
            self._scratch.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._scratch, pa.schema(list(names.items())), compression="zstd")
        columns = zip(*self._rows, strict=True) if self._rows else [()] * len(names)
        arrays = [pa.array(column, kind) for column, kind in zip(columns, names.values(), strict=True)]
        self._writer.write_table(pa.table(arrays, names=list(names)))
        self._rows.clear()


def _spared(name: str | None) -> frozenset[tuple[str, int]]:
    """The places in a file as ``text.filters.spare`` names it."""
    if name is None:
        return frozenset()
    path = Path(name)
    if not path.is_file():
        raise BrdError(f"{path}: no such file (text.filters.spare)")
    places = set()
    for where, row in _rows(path):
        document, index = row.get("document"), row.get("paragraph")
        if not isinstance(document, str) or not isinstance(index, int):
            raise BrdError(f"{where}: should have a document (text) and a paragraph (number), as dropped.parquet has")
        places.add((document, index))
    return frozenset(places)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix == ".jsonl":
        for number, line in lines(path, "strict"):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except ValueError:
                raise BrdError(f"{where}: not valid JSON; each line should be one object") from None
            yield where, row if isinstance(row, dict) else {}
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise BrdError(f"{path}: not a Parquet file, or damaged ({str(error).splitlines()[0][:200]})") from None
        yield from ((f"{path}: row {number}", row) for number, row in enumerate(table.to_pylist()))
    else:
        raise BrdError(f"{path}: text.filters.spare should end in .parquet or .jsonl")
