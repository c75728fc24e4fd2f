"""The sample of sentences that the teacher is really asked. Its answers go into the run's store as they come."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from brd.plan.corpus import Candidate, pick
from brd.plan.timing import Call
from brd.reading.behavior import Behavior
from brd.reading.naming import Name, Names
from brd.reading.reader import reading_of
from brd.reading.store import Reading, Store
from brd.recipe import Recipe
from brd.teachers.teacher import Answer, Teacher

# Sentences of a behavior's calls: one for what comes once, one that is small against the third, which is to fill the
# teacher so many times.
FIRST = 2
SMALL = 32
FILLS = 2
# No more than this share of what is to be asked, and no third call that would take longer than so many seconds.
SHARE = 3
PATIENCE = 120.0
# Of the third call, at least so many sentences where it is made at all.
LEAST = 8


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known of one answer; ``call`` numbers the calls of its behavior, ``end`` is in seconds of it.

    ``own`` are the tokens of the prompt without the shared prefix (of a server: the whole prompt's).
    """

    key: str
    characters: int
    call: int
    end: float
    prompt: int
    own: int
    cached: int
    new: int
    verified: bool
    retries: int


@dataclass(frozen=True, slots=True)
class Measured:
    """The answers of each behavior (by ``Name.label``), and the tokens of its shared prefix (0 of a server, which
    counts whole prompts).

    ``counted``: the server told tokens; else they are estimates. ``start`` seconds went by until the teacher was ready.
    """

    behaviors: dict[str, list[Asked]]
    prefixes: dict[str, int]
    counted: bool
    start: float

    def calls(self) -> dict[str, list[Call]]:
        found: dict[str, list[Call]] = {}
        for name, answers in self.behaviors.items():
            by_call = [[a for a in answers if a.call == n] for n in range(1 + max(a.call for a in answers))]
            found[name] = [
                Call(tuple(a.end for a in call), tuple(a.own for a in call), tuple(a.new for a in call))
                for call in by_call
                if call
            ]
        return found

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(tree: dict[str, Any]) -> "Measured":
        behaviors = {name: [Asked(**a) for a in answers] for name, answers in tree["behaviors"].items()}
        return Measured(behaviors, tree["prefixes"], tree["counted"], tree["start"])


def most_at_once(recipe: Recipe) -> int:
    """How many sentences the teacher has under way when it is full."""
    if recipe.teacher.kind == "openai":
        return recipe.teacher.server.concurrency
    if recipe.teacher.kind == "llamacpp":
        from brd.teachers.llamacpp import MAX_SLOTS

        return min(recipe.teacher.batch_size, MAX_SLOTS)
    return recipe.teacher.batch_size


def sizes(wanted: int | None, there: int, at_once: int) -> list[int]:
    """How many sentences each call of a behavior takes, of ``there`` that can be asked."""
    if wanted is None:
        wanted = min(FIRST + SMALL + FILLS * at_once, max(FIRST + SMALL, there // SHARE))
    wanted = min(wanted, there)
    first = min(FIRST, wanted)
    small = min(SMALL, wanted - first, max(1, (wanted - first) // 2) if wanted - first < 2 * SMALL else SMALL)
    return [n for n in (first, small, wanted - first - small) if n > 0]


def ask(
    recipe: Recipe,
    teacher: Teacher,
    names: Names,
    candidates: dict[str, list[Candidate]],
    wanted: int | None,
    store: Store,
    started: float,
    progress: Callable[[str, int, int], None],
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Ask the sample of each of ``names`` that has something to ask. ``candidates`` are what is not known yet, by their
    labels; ``started`` is when the teacher began to be fetched."""
    start = clock() - started
    found: dict[str, list[Asked]] = {}
    prefixes: dict[str, int] = {}
    counted = True
    for name in names:
        if not (there := candidates[name.label]):
            continue
        each = sizes(wanted, len(there), most_at_once(recipe))
        drawn = pick(there, sum(each))
        one = _Behavior(recipe, teacher, name, names.behavior_of(name), store, clock)
        done = 0
        for number, size in enumerate(each):
            if number == 2:
                pace = max(a.end for a in one.asked if a.call == 1) / each[1]
                size = min(size, max(LEAST, int(PATIENCE / max(pace, 1e-9))))
            for count, _ in enumerate(one.call(number, drawn[done : done + size]), start=done + 1):
                progress(f"{name.label}, a sample", count, len(drawn))
            done += size
        found[name.label], prefixes[name.label] = one.asked, one.prefix
        counted = counted and one.counted
    return Measured(found, prefixes, counted, start)


class _Behavior:
    def __init__(
        self,
        recipe: Recipe,
        teacher: Teacher,
        name: Name,
        behavior: Behavior,
        store: Store,
        clock: Callable[[], float],
    ) -> None:
        self._recipe, self._teacher, self._name, self._behavior = recipe, teacher, name, behavior
        self._store, self._clock = store, clock
        self.asked: list[Asked] = []
        self.prefix, self.counted = 0, True

    def call(self, number: int, candidates: Sequence[Candidate]) -> Iterator[int]:
        behavior, name = self._behavior, self._name
        suffixes = [behavior.suffix(c.text) for c in candidates]
        ended: dict[int, tuple[float, Answer, Reading]] = {}
        began = self._clock()
        for index, answer in self._teacher.answer(
            behavior.prefix, suffixes, stop=behavior.stop, max_new_tokens=name.max_new_tokens
        ):
            at = candidates[index]
            key = name.key(at.text)
            reading = reading_of(key, at.paragraph, at.number, behavior, answer, name, self._recipe)
            self._store.append([reading])
            ended[index] = (self._clock() - began, answer, reading)
            yield index
        for index, (end, answer, reading) in sorted(ended.items()):
            self.asked.append(self._noted(number, end, answer, reading, suffixes[index]))

    def _noted(self, call: int, end: float, answer: Answer, reading: Reading, suffix: str) -> Asked:
        behavior, prompt, new = self._behavior, answer.prompt_tokens, answer.new_tokens
        if not prompt and (answer.text or answer.finished):
            # A server that does not tell.
            self.counted = False
            prompt = self._teacher.count_tokens(behavior.prefix) + self._teacher.count_tokens(suffix)
            new = self._teacher.count_tokens(answer.text) + 1
        own = prompt
        if self._recipe.teacher.kind != "openai":
            if not self.asked:
                # Words of a chat template behind the sentence count as prefix.
                self.prefix = prompt - self._teacher.count_tokens(suffix)
            own = max(0, prompt - self.prefix)
        verified = reading.verdict == "verified"
        cached = answer.cached_tokens
        return Asked(reading.key, len(reading.text), call, end, prompt, own, cached, new, verified, answer.retries)
