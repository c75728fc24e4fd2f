"""Lessons: original paragraphs (D_ORI) and paragraphs with their readings (D_NER, D_QRA), as plain text."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from brd.errors import BrdError
from brd.reading.chosen import ReadParagraph
from brd.reading.reader import Readings, as_taught
from brd.recipe import Recipe
from brd.sections.composing import Composing


@dataclass(frozen=True, slots=True)
class Lesson:
    """A training document. ``answers`` are the character spans of readings in ``text``, after their cues."""

    part: str
    text: str
    answers: tuple[tuple[int, int], ...] = ()


AnswerOf = Callable[[str, ReadParagraph, int], str | None]
"""(behavior, paragraph, number of the sentence) -> what follows the cue."""


def lessons_of(
    paragraph: ReadParagraph, part: str, readings: Readings, settings: Composing, answer: AnswerOf | None = None
) -> Iterator[Lesson]:
    """The lessons of one paragraph: one at paragraph level, one a sentence at sentence level.

    Paper: ``s1 <sep> NER(s1) <sep> s2 <sep> NER(s2) ...``. A sentence without a usable reading stays, without one.
    D_ORI is the paragraph itself at both levels. ``answer`` gives other readings than the sentence's own.
    """
    if part == "original":
        yield Lesson(part, paragraph.text)
        return
    answer = answer or (lambda behavior, place, number: answer_of(readings, behavior, place, number, settings))
    lines = [(paragraph.sentence(n), answer(part, paragraph, n)) for n in range(len(paragraph.spans))]
    groups = [lines] if settings.level == "paragraph" else [[line] for line in lines]
    cue = readings.behaviors[part].cue
    for group in groups:
        text, spans = "", []
        for sentence, said in group:
            text += (settings.separator if text else "") + sentence
            if said is not None:
                text += settings.separator + cue
                spans.append((len(text), len(text) + len(said)))
                text += said
        if text:
            yield Lesson(part, text, tuple(spans))


def answer_of(
    readings: Readings, behavior: str, paragraph: ReadParagraph, number: int, settings: Composing
) -> str | None:
    """What follows the cue in the lesson, or None where there is no usable reading.

    With ``verified_only`` off, rejected and malformed answers stand in the lesson as the teacher wrote them.
    """
    if number not in paragraph.readable:
        return None
    return _rendered(readings, behavior, paragraph.sentence(number), paragraph.language, settings)


def _rendered(readings: Readings, behavior: str, sentence: str, language: str, settings: Composing) -> str | None:
    reading = readings.get(behavior, sentence, language)
    return None if reading is None else as_taught(readings.behaviors[behavior], reading, settings.verified_only)


def shuffled_answers(recipe: Recipe, readings: Readings) -> AnswerOf:
    """Every sentence that has a usable reading gets that of another one in its language, each once (control arm).

    What is then taught has the same readings, of the same lengths, in the same number of places.
    """
    settings = recipe.composing
    given: dict[tuple[str, tuple[str, str]], str] = {}
    places = list(dict.fromkeys((p.sentence(n), p.language) for p in taught(recipe, readings) for n in p.readable))
    for name in readings.behaviors:
        drawn = random.Random(f"shuffle {name} {recipe.seed}")
        for code in readings.behaviors.each(name):
            mine = [place for place in places if code in ("", place[1])]
            own = {place: said for place in mine if (said := _rendered(readings, name, *place, settings)) is not None}
            # In a ring where equal readings ("none") lie together, taking from as far on as the largest such group is
            # long leaves nobody with a reading that says what its own said, unless most say the same.
            groups: dict[str, list[tuple[str, str]]] = {}
            for place in drawn.sample(list(own), len(own)):
                groups.setdefault(own[place], []).append(place)
            order = [place for group in drawn.sample(list(groups.values()), len(groups)) for place in group]
            step = max(map(len, groups.values()), default=0)
            given.update({(name, place): own[order[(n + step) % len(order)]] for n, place in enumerate(order)})

    def answer(behavior: str, paragraph: ReadParagraph, number: int) -> str | None:
        place = (paragraph.sentence(number), paragraph.language)
        return given.get((behavior, place)) if number in paragraph.readable else None

    return answer


def taught(recipe: Recipe, readings: Readings, held_out: bool = False) -> list[ReadParagraph]:
    """The paragraphs of one part that lessons are made of; of the training part only ``composing.sentences``."""
    paragraphs = [p for p in readings.paragraphs if p.held_out == held_out]
    limit = recipe.composing.sentences
    if held_out or limit is None:
        return paragraphs
    before = [0, *accumulate(len(p.readable) for p in paragraphs)]
    return [p for p, count in zip(paragraphs, before, strict=False) if count < limit]


def check_separator(recipe: Recipe, readings: Readings) -> None:
    """The separator must not stand inside a reading, or nobody could tell where a reading ends."""
    for name, behavior in readings.behaviors.items():
        if recipe.composing.separator in behavior.prefix.split("\n\n")[1]:
            raise BrdError(
                f"composing.separator: {recipe.composing.separator!r} stands inside {name} readings; "
                "use another, such as a blank line ('\\n\\n')"
            )


def lessons(recipe: Recipe, readings: Readings, held_out: bool = False) -> Iterator[Lesson]:
    """All lessons of one part of the corpus, in an order drawn from the recipe's seed, by the recipe's mix.

    A weight of 2 takes a part twice, 0.5 takes half of its paragraphs. Held-out lessons are taken once, in order.
    """
    paragraphs = taught(recipe, readings, held_out)
    mix = {part: recipe.composing.weight(part) for part in ("original", *readings.behaviors)}
    if held_out:
        order = [(part, n) for part, weight in mix.items() if weight for n in range(len(paragraphs))]
    else:
        drawn = random.Random(f"lessons {recipe.seed}")
        order = []
        for part, weight in mix.items():
            extra = drawn.sample(range(len(paragraphs)), round((weight % 1) * len(paragraphs)))
            order += [(part, n) for n in [*range(len(paragraphs))] * int(weight) + extra]
        drawn.shuffle(order)
    answer = shuffled_answers(recipe, readings) if recipe.composing.shuffle_readings and not held_out else None
    for part, n in order:
        yield from lessons_of(paragraphs[n], part, readings, recipe.composing, answer)
