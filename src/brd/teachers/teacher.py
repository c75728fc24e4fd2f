"""What every teacher offers: many completions of one shared few-shot prefix."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Answer:
    """One greedy completion.

    ``text`` ends before the stop string. ``prompt_tokens`` counts prefix and suffix, ``new_tokens``
    what was decoded (the stop included). ``finished`` is False where ``max_new_tokens`` ran out.

    Of a server: ``cached_tokens`` of the prompt were in its cache, as far as it tells; ``retries`` are the requests
    for this answer that failed before. An empty answer that is not finished and has no tokens was refused.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    finished: bool
    cached_tokens: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True)
class Prompt:
    """What all questions of a behavior in one language share: the prefix before them, where an answer ends, and how
    many tokens it may have."""

    prefix: str
    stop: tuple[str, ...]
    max_new_tokens: int


class Teacher(Protocol):
    """A language model that continues prompts.

    ``context_length`` is the longest prompt plus answer in tokens. ``identity()`` holds all that can change
    an answer (weights, dtype, decoding): it is part of the key under which a reading is stored.
    """

    @property
    def context_length(self) -> int: ...

    def identity(self) -> dict[str, str]: ...

    def count_tokens(self, text: str) -> int: ...

    def answer(
        self, prefix: str, suffixes: Sequence[str], *, stop: Sequence[str], max_new_tokens: int
    ) -> Iterator[tuple[int, Answer]]:
        """Yield ``(index, answer)`` for every suffix, in whatever order they finish.

        The prompt of suffix ``i`` is ``prefix + suffixes[i]``, tokenised as two pieces so that the prefix is
        the same for all (a server tokenises it whole). Raises BrdError when a prompt and ``max_new_tokens`` do not
        fit the context; of a server, when no prompt would.
        """
        ...

    def close(self) -> None: ...
