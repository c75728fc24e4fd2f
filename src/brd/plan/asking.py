"""The sample of sentences that the teacher is really asked. Its answers go into the run's store as they come."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from brd.plan.corpus import Candidate, pick
from brd.plan.timing import Call
from brd.reading.behavior import Behavior
from brd.reading.store import Reading, Store, reading_key, with_judgement
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
    """The answers of each behavior, and the tokens of its shared prefix (0 of a server, which counts whole prompts).

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
    identity: str,
    behaviors: dict[str, tuple[Behavior, str]],
    candidates: dict[str, list[Candidate]],
    wanted: int | None,
    store: Store,
    started: float,
    progress: Callable[[str, int, int], None],
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Ask the sample of each behavior that has something to ask. ``behaviors`` come with their prompt hashes,
    ``candidates`` are what is not known yet; ``started`` is when the teacher began to be fetched."""
    start = clock() - started
    found: dict[str, list[Asked]] = {}
    prefixes: dict[str, int] = {}
    counted = True
    for name, (behavior, prompt) in behaviors.items():
        if not (there := candidates[name]):
            continue
        each = sizes(wanted, len(there), most_at_once(recipe))
        drawn = pick(there, sum(each))
        one = _Behavior(recipe, teacher, identity, behavior, prompt, store, clock)
        done = 0
        for number, size in enumerate(each):
            if number == 2:
                pace = max(a.end for a in one.asked if a.call == 1) / each[1]
                size = min(size, max(LEAST, int(PATIENCE / max(pace, 1e-9))))
            for count, _ in enumerate(one.call(number, drawn[done : done + size]), start=done + 1):
                progress(f"{name}, a sample", count, len(drawn))
            done += size
        found[name], prefixes[name] = one.asked, one.prefix
        counted = counted and one.counted
    return Measured(found, prefixes, counted, start)


class _Behavior:
    def __init__(
        self,
        recipe: Recipe,
        teacher: Teacher,
        identity: str,
        behavior: Behavior,
        prompt: str,
        store: Store,
        clock: Callable[[], float],
    ) -> None:
        self._recipe, self._teacher, self._identity, self._behavior = recipe, teacher, identity, behavior
        self._prompt, self._store, self._clock = prompt, store, clock
        self.asked: list[Asked] = []
        self.prefix, self.counted = 0, True

    def call(self, number: int, candidates: Sequence[Candidate]) -> Iterator[int]:
        behavior, limit = self._behavior, limit_of(self._behavior, self._recipe)
        suffixes = [behavior.suffix(c.text) for c in candidates]
        ended: dict[int, tuple[float, Answer, Reading]] = {}
        began = self._clock()
        for index, answer in self._teacher.answer(behavior.prefix, suffixes, stop=behavior.stop, max_new_tokens=limit):
            reading = self._reading(candidates[index], answer, limit)
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

    def _reading(self, candidate: Candidate, answer: Answer, limit: int) -> Reading:
        span, text = candidate.paragraph.spans[candidate.number], candidate.text
        blank = Reading(
            key=reading_key(self._identity, self._prompt, limit, text),
            document=candidate.paragraph.document,
            paragraph=candidate.paragraph.index,
            sentence=candidate.number,
            start=span.start,
            end=span.end,
            text=text,
            behavior=self._behavior.name,
            raw=answer.text,
            finished=answer.finished,
            content=None,
            verdict="malformed",
            reason="",
            parts=0,
            parts_verified=0,
            teacher=self._identity,
            prompt_hash=self._prompt,
            prompt_tokens=answer.prompt_tokens,
            new_tokens=answer.new_tokens,
        )
        drop = self._recipe.reading.drop_bad_entities
        return with_judgement(
            blank, self._behavior.judge(answer.text, text, finished=answer.finished, drop_bad_parts=drop)
        )


def limit_of(behavior: Behavior, recipe: Recipe) -> int:
    """The longest answer, in tokens."""
    return min(behavior.max_new_tokens, recipe.teacher.max_new_tokens)
