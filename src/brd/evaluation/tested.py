"""Whether a record is tested: by what it asks, whatever its file, its number, and the names of its fields."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from itertools import tee

from brd.evaluation.contamination import item_texts
from brd.evaluation.items import Half, Item, content, half_of, render
from brd.evaluation.records import Record, records
from brd.evaluation.tasks import Task
from brd.text.ngrams import words_of


class ScoredItems:
    """The items of tasks, those of one ``half`` where that alone is tested; a ``limit`` on them counts for nothing, so
    that it can be raised later. In memory is a hash of 16 bytes for each item and each of its texts.

    Texts are compared by their words, so that spaces, capitals and punctuation do not hide anything.
    """

    def __init__(self, tasks: Iterable[Task], half: Half | None, asked: Collection[str]) -> None:
        """``asked`` are the names of tasks that ``has`` will be asked about: their prompts are compared too."""
        self._items: set[bytes] = set()
        self._texts: set[bytes] = set()
        for task in tasks:
            source = records(task.name, task.source)
            both: Iterable[tuple[Record, Item | None]] = ((record, None) for record in source)
            if task.name in asked:
                both = with_prompts(task, source)
            for record, item in both:
                if half is None or half_of(task, record) == half:
                    self._items.update(_prints(task, record, item))
                    self._texts.update(_hash(text) for text in texts_of(task, record))

    def has(self, task: Task, record: Record, item: Item) -> bool:
        """Whether a record of this task, as ``with_prompts`` gives it, is an item of any: by all its texts, or by its
        prompt and candidates."""
        return not self._items.isdisjoint(_prints(task, record, item))

    def has_text(self, text: str) -> bool:
        """Whether a text is one of an item's."""
        return _hash(text) in self._texts


def texts_of(task: Task, record: Record) -> list[str]:
    """The different texts of what is asked in a record, in the order of its fields."""
    return list(dict.fromkeys(text for text in item_texts(json.loads(content(task, record))) if text.strip()))


def with_prompts(task: Task, source: Iterable[Record]) -> Iterator[tuple[Record, Item]]:
    """Each record with its item under the default template, not graded. Raises BrdError where one does not fit it."""
    a, b = tee(source)
    return zip(a, render(task, task.template(), enumerate(b), graded=False), strict=True)


def _prints(task: Task, record: Record, item: Item | None) -> Iterator[bytes]:
    if texts := sorted({_folded(text) for text in texts_of(task, record)}):
        yield _hash(*texts)
    if item is not None:
        yield _hash(f"prompt {task.name}", item.context, *sorted(map(_folded, item.candidates)))


def _folded(text: str) -> str:
    return " ".join(words_of(text)) or text.strip()


def _hash(*texts: str) -> bytes:
    return hashlib.blake2b("\0".join(map(_folded, texts)).encode(), digest_size=16).digest()
