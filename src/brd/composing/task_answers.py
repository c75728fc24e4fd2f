"""Lessons of task inputs: the prompt of an input and its answer, by the teacher (task distillation) or by a label."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from brd.reading.answers import Answers, Asked, Kind, completing
from brd.reading.task_inputs import TaskInput
from brd.teachers.teacher import Answer, Prompt, Teacher

Choose = Callable[[Sequence[TaskInput]], Iterable[tuple[int, int]]]
"""The number of each input's likeliest candidate, as (number of the input, number of the candidate)."""

# What a teacher is asked that gives text and no probabilities: of our own, so that it shows the form and no task.
OPTIONS = Prompt(
    """Each text can go on in several ways. Say the number of the option that is right.

Text: Snow is made of frozen water. Question: Is snow warm? Answer: Options: (1) yes (2) no
Option: 2

Text: The kettle whistled, so Ada Options: (1) took it off the stove (2) put it into the bath (3) wrote it a letter
Option: 1

Text: The shop opens at nine and closes at five. Statement: It is open at noon. The statement is Options: (1) false \
(2) uncertain (3) true
Option: 3

Text: "What a dull evening," she said. She felt Options: (1) thrilled (2) bored
Option: 2

""",
    ("\n",),
    8,
)
# How candidates are ranked where the teacher has probabilities: as in the paper, whatever the tests rank by.
METRIC: Literal["token_mean"] = "token_mean"
_NUMBER = re.compile(r"\s*\(?(\d{1,3})(?!\d)")


def answered(inputs: Sequence[TaskInput], answers: Answers, choose: Choose | None, counts: Counter[str]) -> list[str]:
    """Each input's prompt with the candidate that the teacher takes, right or wrong.

    By the probabilities of the candidates where the teacher has them (``choose``), else by what
    it writes when it is shown the candidates. ``counts`` is told of those whose answer names no candidate; they are
    left out.
    """
    said = answers.of(*questions(inputs, choose))
    if choose is None:
        picked = [option(text, one.candidates) for text, one in zip(said, inputs, strict=True)]
    else:
        picked = [int(text) for text in said]
    counts["unanswered"] += sum(number is None for number in picked)
    return [one.text(number) for one, number in zip(inputs, picked, strict=True) if number is not None]


def questions(inputs: Sequence[TaskInput], choose: Choose | None) -> tuple[Kind, list[Asked]]:
    """What the teacher is asked about each input, and in which way."""
    if choose is None:
        return completing("option", OPTIONS), [Asked(one.place, shown(one)) for one in inputs]
    by_text = {key_text(one): one for one in inputs}

    def ask(_: Teacher, asked: Sequence[Asked]) -> Iterator[tuple[int, Answer]]:
        for index, candidate in choose([by_text[one.text] for one in asked]):
            yield index, Answer(str(candidate), 0, 0, True)

    return Kind("candidate", (METRIC,), 0, ask), [Asked(one.place, key_text(one)) for one in inputs]


def labelled(inputs: Iterable[TaskInput]) -> list[str]:
    """Each input's prompt with its right candidate."""
    return [one.text(one.right) for one in inputs if one.right is not None]


def key_text(one: TaskInput) -> str:
    """All that the probabilities of an input's candidates hang on."""
    return "\0".join([one.prompt, *one.candidates])


def shown(one: TaskInput) -> str:
    """An input with its options, as a line and a cue."""
    listed = " ".join(f"({number}) {' '.join(text.split())}" for number, text in enumerate(one.candidates, 1))
    return f"Text: {' '.join(one.prompt.split())} Options: {listed}\nOption:"


def option(said: str, candidates: Sequence[str]) -> int | None:
    """The candidate that an answer names: by its number, else by its own words; None where it does neither."""
    if found := _NUMBER.match(said):
        number = int(found[1]) - 1
        return number if 0 <= number < len(candidates) else None
    spoken = _plain(said)
    named = [(len(_plain(text)), n) for n, text in enumerate(candidates) if spoken.startswith(_plain(text))]
    return max(named)[1] if named else None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
