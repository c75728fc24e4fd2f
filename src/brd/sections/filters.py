"""The section ``text.filters`` of a recipe: the settings of each filter stand in its own file."""

from typing import Any

from brd.sections.section import Section
from brd.text.filters.decontaminate import Settings as Decontaminate
from brd.text.filters.exact_duplicates import Settings as ExactDuplicates
from brd.text.filters.language import Settings as Language
from brd.text.filters.length import Settings as Length
from brd.text.filters.near_duplicates import Settings as NearDuplicates
from brd.text.filters.pii import Settings as Pii
from brd.text.filters.repetition import Settings as Repetition


class Filters(Section):
    """What paragraphs of the corpus have to pass; null is off, ``{}`` on with the defaults.

    ``spare`` is a file with columns ``document`` and ``paragraph`` (as a run's ``dropped.parquet`` has): paragraphs
    that no filter touches.
    """

    length: Length | None = None
    language: Language | None = None
    repetition: Repetition | None = None
    pii: Pii | None = None
    decontaminate: Decontaminate | None = None
    exact_duplicates: ExactDuplicates | None = None
    near_duplicates: NearDuplicates | None = None
    spare: str | None = None

    def on(self) -> dict[str, Any]:
        """The settings of the filters that are on, by name."""
        names = type(self).model_fields.keys() - {"spare"}
        return {name: value for name in sorted(names) if (value := getattr(self, name)) is not None}
