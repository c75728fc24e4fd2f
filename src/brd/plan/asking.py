"""The sample of sentences that the teacher is really asked. Its answers go into the run's store as they come."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from brd.plan.corpus import Candidate, pick
from brd.reading.behavior import Behavior
from brd.reading.naming import Name, Names
from brd.reading.reader import reading_of
from brd.reading.store import Reading, Store
from brd.recipe import Recipe
from brd.teachers.teacher import Answer, Teacher

# Sentences of a behavior's calls: one for what comes once, one that is small against the third, which is to fill the
# teacher so many times (and is as large as the second at least).
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
    """What is known of one answer. It came ``end`` seconds after its call began; ``own`` are the tokens of the prompt
    without the shared prefix (of a server: all of them). ``counted``: the teacher told tokens; else they are estimates.
    """

    key: str
    characters: int
    end: float
    prompt: int
    own: int
    cached: int
    new: int
    counted: bool
    verified: bool
    retries: int


Call = list[Asked]
"""Sentences that were asked together, in the order of asking."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The calls of each behavior (by ``Name.label``); ``start`` seconds went by until the teacher was ready."""

    calls: dict[str, list[Call]]
    start: float

    def answers(self, name: str) -> Call:
        return [answer for call in self.calls.get(name, []) for answer in call]

    @property
    def all(self) -> Call:
        return [answer for name in self.calls for answer in self.answers(name)]

    @staticmethod
    def from_json(tree: dict[str, Any]) -> "Measured":
        found = {name: [[Asked(**a) for a in call] for call in calls] for name, calls in tree["calls"].items()}
        return Measured(found, tree["start"])


def untimed(recipe: Recipe) -> str:
    """Why answers of a sample do not tell the hours of a run; empty where they do."""
    if recipe.teacher.kind == "vllm":
        return "every call starts vLLM's engines anew, so that a sample does not tell how fast they are"
    if recipe.teacher.kind == "openai" and recipe.teacher.server.batch:
        return "a provider answers batches when it suits it, mostly within a day"
    return ""


def most_at_once(recipe: Recipe) -> int:
    """How many sentences the teacher has under way when it is full."""
    if recipe.teacher.kind == "openai":
        return recipe.teacher.server.concurrency
    if recipe.teacher.kind == "llamacpp":
        from brd.teachers.llamacpp import MAX_SLOTS

        return min(recipe.teacher.batch_size, MAX_SLOTS)
    return recipe.teacher.batch_size


def sizes(wanted: int | None, there: int, at_once: int | None) -> list[int]:
    """How many sentences each call of a behavior takes, of ``there`` that can be asked; one call is enough where no
    time is to be told (``at_once`` is None)."""
    if at_once is None:
        return [min(wanted or FIRST + SMALL, there)]
    if wanted is None:
        most = FIRST + SMALL + max(SMALL, FILLS * at_once)
        wanted = min(most, max(FIRST + SMALL, there // SHARE))
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
    found: dict[str, list[Call]] = {}
    for name in names:
        if not (there := candidates[name.label]):
            continue
        each = sizes(wanted, len(there), None if untimed(recipe) else most_at_once(recipe))
        drawn = pick(there, sum(each))
        calls = found[name.label] = []
        done = 0
        for number, size in enumerate(each):
            if number == 2:
                pace = max(a.end for a in calls[1]) / each[1]
                size = min(size, max(LEAST, int(PATIENCE / max(pace, 1e-9))))
            tell = partial(_tell, progress, f"{name.label}, a sample", done, len(drawn))
            some = drawn[done : done + size]
            calls.append(_call(recipe, teacher, name, names.behavior_of(name), some, store, tell, clock))
            done += size
    return Measured(found, start)


def _tell(progress: Callable[[str, int, int], None], what: str, before: int, of: int, done: int) -> None:
    progress(what, before + done, of)


def _call(
    recipe: Recipe,
    teacher: Teacher,
    name: Name,
    behavior: Behavior,
    candidates: Sequence[Candidate],
    store: Store,
    tell: Callable[[int], None],
    clock: Callable[[], float],
) -> Call:
    suffixes = [behavior.suffix(c.text) for c in candidates]
    ended: dict[int, tuple[float, Answer, Reading]] = {}
    began = clock()
    for index, answer in teacher.answer(
        behavior.prefix, suffixes, stop=behavior.stop, max_new_tokens=name.max_new_tokens
    ):
        at = candidates[index]
        reading = reading_of(name.key(at.text), at.paragraph, at.number, behavior, answer, name, recipe)
        store.append([reading])
        ended[index] = (clock() - began, answer, reading)
        tell(len(ended))
    noted: Call = []
    for index, (end, answer, reading) in sorted(ended.items()):
        prompt, new = answer.prompt_tokens, answer.new_tokens
        # There are servers that do not tell.
        counted = bool(prompt) or not (answer.text or answer.finished)
        if not counted:
            prompt = teacher.count_tokens(behavior.prefix) + teacher.count_tokens(suffixes[index])
            new = teacher.count_tokens(answer.text) + 1
        noted.append(
            Asked(
                key=reading.key,
                characters=len(reading.text),
                end=end,
                prompt=prompt,
                own=prompt if recipe.teacher.named else teacher.count_tokens(suffixes[index]),
                cached=answer.cached_tokens,
                new=new,
                counted=counted,
                verified=reading.verdict == "verified",
                retries=answer.retries,
            )
        )
    return noted
