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


AskAll = Callable[[Sequence[Asked]], Iterable[tuple[int, Answer]]]
"""Answers by number, in whatever order."""


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

    def completions(self, kind: str, prompt: Prompt, asked: Sequence[Asked]) -> list[str]:
        """What the teacher writes behind each of these, in their order; empty where a server refused."""

        def ask(missing: Sequence[Asked]) -> Iterator[tuple[int, Answer]]:
            texts = [one.text for one in missing]
            return self._teacher.answer(prompt.prefix, texts, stop=prompt.stop, max_new_tokens=prompt.max_new_tokens)

        return self.of(kind, [prompt.prefix, *prompt.stop], prompt.max_new_tokens, asked, ask)

    def of(self, kind: str, how: Sequence[str], limit: int, asked: Sequence[Asked], ask: AskAll) -> list[str]:
        """The answers to these in their order; ``ask`` is called for those that are not known. ``how`` and ``limit``
        are all that can change an answer beside the teacher and the text."""
        if self._identity is None:
            self._identity = teacher_hash(self._teacher)
        mark = hashlib.sha256("\0\0".join([kind, *how]).encode()).hexdigest()[:16]
        keys = [reading_key(self._identity, mark, limit, one.text) for one in asked]
        first = {key: number for number, key in reversed([*enumerate(keys)]) if key not in self._known}
        missing = sorted(first.values())
        self.counts["known"] += len(asked) - len(missing)
        for index, answer in ask([asked[number] for number in missing]) if missing else ():
            number = missing[index]
            self._keep(keys[number], kind, asked[number], answer, mark)
            if self._progress:
                self._progress(kind, self.counts["asked"], None)
        return [self._known[key] for key in keys]

    def _keep(self, key: str, kind: str, asked: Asked, answer: Answer, mark: str) -> None:
        assert self._identity is not None
        row = Reading(
            key=key,
            document=asked.place,
            paragraph=0,
            sentence=0,
            start=0,
            end=len(asked.text),
            text=asked.text,
            behavior=kind,
            raw=answer.text,
            finished=answer.finished,
            content=None,
            verdict="",
            reason="",
            parts=0,
            parts_verified=0,
            teacher=self._identity,
            prompt_hash=mark,
            prompt_tokens=answer.prompt_tokens,
            new_tokens=answer.new_tokens,
        )
        self._store.append([row])
        self._known[key] = answer.text
        self.counts.update(asked=1, prompt_tokens=answer.prompt_tokens, new_tokens=answer.new_tokens)
