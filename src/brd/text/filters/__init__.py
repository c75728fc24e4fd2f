"""Filters of the corpus, a file each: what a paragraph has to pass before anything reads it."""

from brd.text.filters.decontaminate import Decontaminate
from brd.text.filters.exact_duplicates import ExactDuplicates
from brd.text.filters.filter import Context, Decision, Filter, Tests
from brd.text.filters.language import Language
from brd.text.filters.length import Length
from brd.text.filters.near_duplicates import NearDuplicates
from brd.text.filters.pii import Pii
from brd.text.filters.repetition import Repetition

# In the order in which a paragraph passes them: what drops it for its own sake first, so that the first of several
# copies is one that stays; what costs least before what costs more.
FILTERS: dict[str, type[Filter]] = {
    "length": Length,
    "language": Language,
    "repetition": Repetition,
    "pii": Pii,
    "decontaminate": Decontaminate,
    "exact_duplicates": ExactDuplicates,
    "near_duplicates": NearDuplicates,
}

__all__ = ["FILTERS", "Context", "Decision", "Filter", "Tests"]
