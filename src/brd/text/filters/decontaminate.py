"""Paragraphs that hold a run of words of a test, as `brd contamination` finds them."""

from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import Field

from brd.errors import BrdError
from brd.sections.section import Positive, Section
from brd.text.filters.filter import Context, Decision
from brd.text.ngrams import Index, words_of
from brd.text.paragraph import Paragraph


class Settings(Section):
    """``n`` words in a row of a test's field are enough; a field of at least ``short`` words has to occur whole."""

    n: Annotated[int, Field(ge=2, le=100)] = 13
    short: Positive = 8


class Decontaminate:
    """Drops paragraphs with words of the recipe's tests (``evaluation.tasks``).

    Shared words may run across the paragraphs of a document: the one that completes them is dropped. Raises BrdError
    where the tests are not known.
    """

    def __init__(self, settings: Settings, context: Context) -> None:
        if context.tests is None:
            raise BrdError("text.filters.decontaminate: the tests are not known here; read the corpus through a recipe")
        self._ids: list[str] = []
        self._before = settings.n - 1
        self._index = Index(self._fields(context.tests()), settings.n, settings.short)
        self._document: str | None = None
        self._last: list[str] = []

    def _fields(self, tests: Iterable[tuple[str, tuple[str, ...]]]) -> Iterator[tuple[str, ...]]:
        for name, texts in tests:
            self._ids.append(name)
            yield texts

    def judge(self, paragraph: Paragraph) -> Decision | None:
        if paragraph.document != self._document:
            self._document, self._last = paragraph.document, []
        words = self._last + words_of(paragraph.text)
        if found := self._index.first(words):
            owner, gram = found
            return Decision(f"{self._ids[owner]}: {gram}")
        self._last = words[-self._before :]
        return None
