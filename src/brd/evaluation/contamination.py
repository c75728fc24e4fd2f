"""What of the evaluation tasks stands in a training corpus: shared runs of words (n-grams), found in one pass.

The corpus is streamed: beside a batch of its words, memory holds what belongs to the items alone (their vocabulary and
their n-grams, see ``text/ngrams.py``).
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brd.errors import BrdError
from brd.evaluation.records import records
from brd.evaluation.tasks import Task, load_task
from brd.reading.parquet import read_table
from brd.sections.text import Text
from brd.text.ngrams import Found, Index, batches
from brd.text.sources import paragraphs


@dataclass(frozen=True, slots=True)
class TaskItem:
    """An item of a task as it is compared: each of ``texts`` by itself; ``id`` is unique in its task."""

    task: str
    id: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Match:
    """An item that shares words with the corpus.

    ``share`` (above 0, at most 1) is the share of the item's n-grams that were found, ``gram`` the first of them (a
    whole short field only when there is no other), as folded words, ``where`` the place of its first occurrence.
    """

    id: str
    share: float
    gram: str
    where: str


@dataclass(frozen=True, slots=True)
class TaskOverlap:
    """Counts of a task's items (``compared`` and ``too_short`` add up to ``items``) and the matches by item id."""

    items: int
    compared: int
    too_short: int
    flagged: dict[str, Match]


def find_overlap(
    items: Iterable[TaskItem],
    corpus: Iterable[tuple[str, str]],
    n: int = 13,
    short: int = 8,
    progress: Callable[[int], None] | None = None,
) -> dict[str, TaskOverlap]:
    """The overlap of each task with a corpus of (where, text) pairs, which is read once.

    An item is flagged when ``n`` words in a row of one of its texts occur in the corpus. A text of fewer words, but
    at least ``short``, has to occur whole; still shorter ones are not compared. Consecutive pairs with the same
    ``where`` are pieces of one text: shared words may run across them. ``progress`` is told the number of words read.
    Raises BrdError for n below 2, short below 1, and an item that occurs twice.
    """
    # In the order of the items; a second value of the same key would hide a match.
    names: dict[tuple[str, str], None] = {}

    def texts() -> Iterator[tuple[str, ...]]:
        for item in items:
            if (item.task, item.id) in names:
                raise BrdError(f"task {item.task}: item {item.id!r} occurs twice")
            names[item.task, item.id] = None
            yield item.texts

    index = Index(texts(), n, short)
    read = 0
    for batch in batches(corpus, n):
        index.look_up(batch)
        read += batch.new
        if progress:
            progress(read)
    return _by_task(list(names), index.found())


def _by_task(names: list[tuple[str, str]], marked: Found) -> dict[str, TaskOverlap]:
    """The overlap by task, tasks and items in their order."""
    tasks: dict[str, list[tuple[int, str]]] = {}
    for owner, (task, name) in enumerate(names):
        tasks.setdefault(task, []).append((owner, name))
    return {
        task: TaskOverlap(
            items=len(members),
            compared=(compared := sum(bool(marked.count[owner]) for owner, _ in members)),
            too_short=len(members) - compared,
            flagged={
                name: Match(name, float(marked.found[owner] / marked.count[owner]), *marked.examples[owner])
                for owner, name in members
                if owner in marked.examples
            },
        )
        for task, members in tasks.items()
    }


def task_items(task: Task) -> Iterator[TaskItem]:
    """The records of a task as they are, under the ids that scores have; templates add words of their own."""
    for number, record in enumerate(records(task.name, task.source)):
        yield TaskItem(task.name, f"{task.name}/{number}", item_texts(record))


def task_texts(names: Iterable[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(id, texts) of every item of the tasks with these names: what the corpus filter ``decontaminate`` looks for."""
    for name in names:
        yield from ((item.id, item.texts) for item in task_items(load_task(name)))


def item_texts(record: dict[str, Any]) -> tuple[str, ...]:
    """Every string value of a task's record, in its order, through nested lists and mappings (keys are left out)."""
    return tuple(_strings(record))


def corpus_texts(source: str | Path, settings: Text | None = None) -> Iterator[tuple[str, str]]:
    """A corpus as (where, text) pairs for ``find_overlap``.

    A run folder gives its paragraphs (``document/paragraph``), then the sentences and the teacher's raw answers of
    all its readings, wanted by the recipe or not. Anything else is read as ``text.source`` is (file, folder, glob,
    ``hub:NAME``), with the other keys of ``settings``; where is then the document. Raises BrdError for what is
    missing, empty or cannot be read.
    """
    readings = Path(source) / "readings"
    if readings.is_dir():
        yield from _run_texts(readings)
        return
    for paragraph in paragraphs((settings or Text()).model_copy(update={"source": str(source)})):
        yield paragraph.document, paragraph.text


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _run_texts(folder: Path) -> Iterator[tuple[str, str]]:
    shards, chosen, journal = sorted(folder.glob("readings-*.parquet")), folder / "paragraphs.parquet", None
    if chosen.exists():
        for row in _rows(chosen, ["document", "paragraph", "text", "held_out"]):
            yield f"{row['document']}/{row['paragraph']}{' (held out)' if row['held_out'] else ''}", row["text"]
    for shard in shards:
        for row in _rows(shard, ["document", "paragraph", "sentence", "text", "behavior", "raw"]):
            yield from _reading_texts(row)
    # What an interrupted run has not sealed into a shard yet.
    with suppress(FileNotFoundError):
        journal = (folder / "journal.jsonl").open(encoding="utf-8", errors="replace")
    if journal is not None:
        with journal:
            for line in journal:
                # The last line may be torn, as in the store.
                with suppress(json.JSONDecodeError):
                    yield from _reading_texts(json.loads(line))
    if not (shards or chosen.exists() or journal):
        raise BrdError(f"{folder}: holds no readings yet; run the recipe's read step first")


def _rows(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    for part in read_table(path, columns).to_batches(max_chunksize=1024):
        yield from part.to_pylist()


def _reading_texts(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    where = f"{row['document']}/{row['paragraph']}, sentence {row['sentence']}"
    yield where, row["text"]
    yield f"{where}, {row['behavior']} answer", row["raw"]
