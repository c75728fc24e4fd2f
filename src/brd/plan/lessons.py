"""How much there will be to train on: lessons of a sample of paragraphs, with readings of the sample of sentences."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

from brd.composing.documents import lessons_of
from brd.composing.packing import encode
from brd.reading.chosen import ReadParagraph
from brd.reading.naming import Name, Names
from brd.reading.reader import Readings, as_taught
from brd.reading.store import Reading
from brd.reading.tally import text_hash
from brd.recipe import Recipe

# Sentences of about its length, of which one lends a sentence its reading.
NEAR = 5


@dataclass(frozen=True, slots=True)
class _Lender:
    """The readings that sentences of a sample got, by the sentences' lengths."""

    lengths: list[int]
    said: list[str | None]

    def lend(self, sentence: str) -> str | None:
        if not self.lengths:
            return None
        at = bisect_left(self.lengths, len(sentence)) + text_hash(sentence) % NEAR - NEAR // 2
        return self.said[min(max(at, 0), len(self.said) - 1)]


class Sample:
    """Lessons as they will be. A sentence that was not read has the reading of one that is about as long."""

    def __init__(self, names: Names, paragraphs: Sequence[ReadParagraph], readings: Iterable[Reading]) -> None:
        self._names, self._behaviors, self._paragraphs = names, names.behaviors, paragraphs
        self._readings: dict[Name, list[Reading]] = {name: [] for name in names}
        for reading in sorted(readings, key=lambda r: (len(r.text), r.key)):
            if name := names.named(reading):
                self._readings[name].append(reading)
        self.characters = max(1, sum(len(p.text) for p in paragraphs))

    def texts(self, recipe: Recipe, part: str) -> Iterator[str]:
        """The lessons of one part (``original`` or a behavior) by the recipe of an arm."""
        settings = recipe.composing
        lenders = {
            name: _Lender(
                [len(r.text) for r in found],
                [as_taught(self._names.behavior_of(name), r, settings.verified_only) for r in found],
            )
            for name, found in self._readings.items()
        }

        def answer(behavior: str, paragraph: ReadParagraph, number: int) -> str | None:
            if number not in paragraph.readable:
                return None
            return lenders[self._names.of(behavior, paragraph.language)].lend(paragraph.sentence(number))

        # Of the readings only the behaviors are asked for where the answers are given.
        named = cast(Readings, SimpleNamespace(behaviors=self._behaviors))
        for paragraph in self._paragraphs:
            for lesson in lessons_of(paragraph, part, named, settings, answer):
                yield lesson.text

    def lengths(self, recipe: Recipe, part: str, tokenizer: Any) -> list[int]:
        """Tokens of each lesson of a part, of the paragraphs of the sample (``characters`` in all)."""
        return [len(ids) for ids in encode(self.texts(recipe, part), tokenizer)]

    def mixed(self, recipe: Recipe) -> Iterator[str]:
        """Lessons of all parts of the mix in turn."""
        parts = [p for p in ("original", *self._behaviors) if recipe.composing.weight(p)]
        for texts in zip(*(self.texts(recipe, part) for part in parts), strict=False):
            yield from texts
