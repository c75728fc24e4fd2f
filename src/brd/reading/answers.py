"""What a teacher is asked beyond readings, kept as they are: in a journal and shards, found by content, paid for once.

The rows of this store are answers to whole prompts. Nothing verifies them: they are what the teacher said.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brd.reading.chosen import Progress
from brd.reading.reader import teacher_hash
from brd.reading.store import Reading, Store, every, reading_key
from brd.teachers.teacher import Answer, Prompt, Teacher


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt (behind what all prompts of its kind share), and what it is of: ``sst2/17``, a document."""

    place: str
    text: str


@dataclass(frozen=True, slots=True)
class Kind:
    """A way of asking. ``how`` and ``limit`` are all that can change an answer beside the teacher and the text; ``ask``
    gives answers by number, in whatever order."""

    name: str
    how: tuple[str, ...]
    limit: int
    ask: Callable[[Teacher, Sequence[Asked]], Iterable[tuple[int, Answer]]]


def completing(name: str, prompt: Prompt) -> Kind:
    """The teacher writes on behind each text."""

    def ask(teacher: Teacher, asked: Sequence[Asked]) -> Iterator[tuple[int, Answer]]:
        texts = [one.text for one in asked]
        return teacher.answer(prompt.prefix, texts, stop=prompt.stop, max_new_tokens=prompt.max_new_tokens)

    return Kind(name, (prompt.prefix, *prompt.stop), prompt.max_new_tokens, ask)


class Answers:
    """A folder of answers by one teacher. Use as a context manager; one process holds it at a time.

    An interrupted call has lost nothing: every answer is in the journal before the next is looked at. In memory are
    all answers of the folder. ``counts`` says how many were ``asked`` and how many were ``known``, and tokens.
    """

    def __init__(self, folder: Path, teacher: Teacher, shard_rows: int = 5000, progress: Progress | None = None):
        self._store, self._teacher, self._progress = Store(folder, shard_rows), teacher, progress
        self._known: dict[str, str] = {}
        self._identity: str | None = None
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> "Answers":
        self._store.__enter__()
        self._known = {reading.key: reading.raw for some in every(self._store.folder) for reading in some}
        return self

    def __exit__(self, *error: Any) -> None:
        self._store.__exit__(*error)

    def of(self, kind: Kind, asked: Sequence[Asked]) -> list[str]:
        """The answers to these in their order (empty where a server refused); those that are not known are asked."""
        for _ in self.come(kind, asked):
            if self._progress:
                self._progress(kind.name, self.counts["asked"], None)
        return [self._known[key] for key in self._keys(kind, asked)]

    def knows(self, kind: Kind, asked: Sequence[Asked]) -> list[bool]:
        """Of each of these, whether it has an answer."""
        return [key in self._known for key in self._keys(kind, asked)]

    def come(self, kind: Kind, asked: Sequence[Asked]) -> Iterator[tuple[int, Answer]]:
        """Ask those that are not known; yields the number of each as it came and is kept."""
        keys = self._keys(kind, asked)
        first = {key: number for number, key in reversed([*enumerate(keys)]) if key not in self._known}
        missing = sorted(first.values())
        self.counts["known"] += len(asked) - len(missing)
        for index, answer in kind.ask(self._teacher, [asked[number] for number in missing]) if missing else ():
            number = missing[index]
            self._keep(keys[number], kind, asked[number], answer)
            yield number, answer

    def _keys(self, kind: Kind, asked: Sequence[Asked]) -> list[str]:
        if self._identity is None:
            self._identity = teacher_hash(self._teacher)
        return [reading_key(self._identity, _mark(kind), kind.limit, one.text) for one in asked]

    def _keep(self, key: str, kind: Kind, asked: Asked, answer: Answer) -> None:
        assert self._identity is not None
        row = Reading(
            key=key,
            document=asked.place,
            paragraph=0,
            sentence=0,
            start=0,
            end=len(asked.text),
            text=asked.text,
            behavior=kind.name,
            raw=answer.text,
            finished=answer.finished,
            content=None,
            verdict="",
            reason="",
            parts=0,
            parts_verified=0,
            teacher=self._identity,
            prompt_hash=_mark(kind),
            prompt_tokens=answer.prompt_tokens,
            new_tokens=answer.new_tokens,
        )
        self._store.append([row])
        self._known[key] = answer.text
        self.counts.update(asked=1, prompt_tokens=answer.prompt_tokens, new_tokens=answer.new_tokens)


def _mark(kind: Kind) -> str:
    return hashlib.sha256("\0\0".join([kind.name, *kind.how]).encode()).hexdigest()[:16]
