"""Inputs of tasks that students may learn from, and their sentences as paragraphs to read."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from brd.errors import BrdError
from brd.reading.chosen import ReadParagraph
from brd.reading.languages import language_code
from brd.recipe import Recipe
from brd.text.sentences import limit_broken, split


@dataclass(frozen=True, slots=True)
class TaskInput:
    """An input under one template, as the tests ask it, and the number of the ``right`` candidate where its label is
    wanted. ``place`` is task/number (from 0). ``texts`` are what may be read of its record: of the first template's
    only."""

    place: str
    prompt: str
    candidates: tuple[str, ...]
    right: int | None = None
    texts: tuple[str, ...] = ()

    def text(self, candidate: int) -> str:
        return self.prompt + self.candidates[candidate]


def paragraphs_of(recipe: Recipe, inputs: Iterable[TaskInput]) -> Iterator[ReadParagraph]:
    """The texts of the inputs, each as a paragraph that is read. Raises BrdError where their language is not read."""
    settings, spoken = recipe.text, language_code(recipe.text.language)
    if recipe.reading.languages and spoken not in recipe.reading.languages:
        raise BrdError(
            f"text.language: {spoken} is what task inputs are taken to be in, and reading.languages does not have it"
        )
    for one in inputs:
        for index, text in enumerate(one.texts):
            spans = tuple(split(text, settings.language))
            kept = [limit_broken(span, settings.min_characters, settings.max_characters) is None for span in spans]
            readable = tuple(number for number, good in enumerate(kept) if good)
            yield ReadParagraph(f"task {one.place}", index, text, False, spans, readable, spoken)
