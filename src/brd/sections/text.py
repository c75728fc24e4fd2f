"""The section ``text`` of a recipe."""

from typing import Annotated, Any, Literal

from pydantic import Field

from brd.sections.filters import Filters
from brd.sections.section import Positive, Section


class Text(Section):
    """The corpus. ``source`` is ``passages`` (our own prose), a file, folder or glob (or several), or ``hub:NAME``.

    ``order`` shuffled takes the paragraphs of all sources in an order of their hashes, so that a part of the corpus
    has something of every source; the whole corpus is then held in memory. ``id_field`` names a field of records that
    holds their documents' ids, instead of file and number. ``held_out`` and ``healing`` are shares of
    the documents that no arm trains on: for the tests of reading, and for healing the student beforehand.

    What a text is written in is said, in this order, by the field ``language_field`` of its record, by the first
    pattern of ``language_of`` that its file's name matches (as documents are named; ``hub:NAME`` of a Hub dataset), and
    by ``language``.
    """

    source: str | list[str] = "passages"
    layout: Literal["blank_line", "line"] = "line"
    field: str = "text"
    id_field: str | None = None
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    encoding_errors: Literal["strict", "replace"] = "strict"
    language: str = "en"
    language_field: str | None = None
    language_of: dict[str, str] = {}
    filters: Filters = Filters()
    min_characters: Positive = 15
    max_characters: Positive = 400
    order: Literal["corpus", "shuffled"] = "corpus"
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    healing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def deciding(self) -> dict[str, Any]:
        """The keys that decide what the corpus is, but for the sources' content, for fingerprints.

        Keys that are younger than some runs are left out where they are not used, so that these runs stay current.
        """
        unused = {key for key in ("id_field", "language_field", "language_of") if not getattr(self, key)}
        keys = self.model_dump(exclude={"source", "filters"} | unused)
        if on := self.filters.on():
            keys["filters"] = {name: settings.model_dump() for name, settings in on.items()}
        return keys
