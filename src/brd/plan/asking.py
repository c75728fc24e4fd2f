"""The sample that the teacher is really asked. Its answers are kept as they come, where the run will find them."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from brd.plan.corpus import Candidate, Weighed, pick
from brd.reading.naming import Name, Names
from brd.reading.reader import reading_of
from brd.reading.store import Store
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
    """The calls of each question (by its label) in one sitting; the teacher was ready after ``start`` seconds."""

    calls: dict[str, list[Call]]
    start: float

    def answers(self, label: str) -> Call:
        return [answer for call in self.calls.get(label, []) for answer in call]

    @property
    def all(self) -> Call:
        return [answer for label in self.calls for answer in self.answers(label)]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(tree: dict[str, Any]) -> "Measured":
        found = {label: [[Asked(**a) for a in call] for call in calls] for label, calls in tree["calls"].items()}
        return Measured(found, tree["start"])


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked in one way about each of ``candidates``, which have no answer yet: ``suffix`` behind ``prefix``.

    ``come`` asks about some of them and keeps the answers; it yields the number of each as it came, the key of its
    reading, whether that is verified, and the answer.
    """

    label: str
    prefix: str
    suffix: Callable[[Any], str]
    candidates: Sequence[Weighed]
    come: Callable[[Sequence[Any]], Iterator[tuple[int, str, bool, Answer]]]


def reading(
    recipe: Recipe, teacher: Teacher, names: Names, name: Name, candidates: Sequence[Candidate], store: Store
) -> Question:
    """The question of a behavior, whose readings go into ``store``."""
    behavior = names.behavior_of(name)

    def come(some: Sequence[Candidate]) -> Iterator[tuple[int, str, bool, Answer]]:
        suffixes = [behavior.suffix(one.text) for one in some]
        answers = teacher.answer(behavior.prefix, suffixes, stop=behavior.stop, max_new_tokens=name.max_new_tokens)
        for index, answer in answers:
            at = some[index]
            found = reading_of(name.key(at.text), at.paragraph, at.number, behavior, answer, name, recipe)
            store.append([found])
            yield index, found.key, found.verdict == "verified", answer

    return Question(name.label, behavior.prefix, lambda one: behavior.suffix(one.text), candidates, come)


def untimed(recipe: Recipe, *, by_batch: bool = True) -> str:
    """Why answers of a sample do not tell the hours of a run; empty where they do. What arms ask goes ``by_batch``
    nowhere."""
    if recipe.teacher.kind == "vllm":
        return "every call starts vLLM's engines anew, so that a sample does not tell how fast they are"
    if by_batch and recipe.teacher.kind == "openai" and recipe.teacher.server.batch:
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
    teacher: Teacher,
    named: bool,
    questions: Sequence[Question],
    at_once: int | None,
    wanted: int | None,
    started: float,
    progress: Callable[[str, int, int], None],
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Ask a sample of each question. ``named``: the teacher is a server, whose prompts are whole. ``at_once`` is None
    where no time is to be told; ``started`` is when the teacher began to be fetched."""
    start = clock() - started
    found: dict[str, list[Call]] = {}
    for question in questions:
        if not question.candidates:
            continue
        each = sizes(wanted, len(question.candidates), at_once)
        drawn = pick(question.candidates, sum(each))
        calls = found[question.label] = []
        done = 0
        for number, size in enumerate(each):
            if number == 2:
                pace = max(a.end for a in calls[1]) / each[1]
                size = min(size, max(LEAST, int(PATIENCE / max(pace, 1e-9))))
            tell = partial(_tell, progress, f"{question.label}, a sample", done, len(drawn))
            calls.append(_call(teacher, named, question, drawn[done : done + size], tell, clock))
            done += size
    return Measured(found, start)


def _tell(progress: Callable[[str, int, int], None], what: str, before: int, of: int, done: int) -> None:
    progress(what, before + done, of)


def _call(
    teacher: Teacher,
    named: bool,
    question: Question,
    some: Sequence[Weighed],
    tell: Callable[[int], None],
    clock: Callable[[], float],
) -> Call:
    ended: dict[int, tuple[float, str, bool, Answer]] = {}
    began = clock()
    for index, key, verified, answer in question.come(some):
        ended[index] = (clock() - began, key, verified, answer)
        tell(len(ended))
    noted: Call = []
    for index, (end, key, verified, answer) in sorted(ended.items()):
        suffix, prompt, new = question.suffix(some[index]), answer.prompt_tokens, answer.new_tokens
        # There are servers that do not tell.
        counted = bool(prompt) or not (answer.text or answer.finished)
        if not counted:
            prompt = teacher.count_tokens(question.prefix) + teacher.count_tokens(suffix)
            new = teacher.count_tokens(answer.text) + 1
        noted.append(
            Asked(
                key=key,
                characters=len(some[index].text),
                end=end,
                prompt=prompt,
                own=prompt if named else teacher.count_tokens(suffix),
                cached=answer.cached_tokens,
                new=new,
                counted=counted,
                verified=verified,
                retries=answer.retries,
            )
        )
    return noted
