"""What a filter of the corpus is."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from brd.errors import BrdError
from brd.text.paragraph import Paragraph

# (id, texts) of each test item that a corpus is not to hold.
Tests = Callable[[], Iterable[tuple[str, tuple[str, ...]]]]


@dataclass(frozen=True, slots=True)
class Decision:
    """What a filter does about a paragraph: ``text`` is what is left of it, None where it is dropped.

    ``detail`` says why in a few words; it never quotes what was taken out for privacy.
    """

    detail: str
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """What filters may need beside their own keys: ``text.language``, and the tests where the caller knows them."""

    language: str = "en"
    tests: Tests | None = None


class Filter(Protocol):
    """Judges the paragraphs of one pass in the order of the corpus, so it may remember what it has seen.

    The same stream gets the same decisions. ``settings`` is the filter's section of the recipe.
    """

    def __init__(self, settings: Any, context: Context) -> None: ...

    def judge(self, paragraph: Paragraph) -> Decision | None:
        """None keeps the paragraph as it is."""
        ...


def missing(name: str, package: str) -> BrdError:
    """The error where a filter's library is not installed."""
    return BrdError(f"text.filters.{name} needs the package {package}: pip install 'brd[corpora]'")
