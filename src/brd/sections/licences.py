"""The section ``licences`` of a recipe."""

from typing import Annotated

from pydantic import Field

from brd.sections.section import Section

# As the Hugging Face Hub writes them.
Licence = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]*$")]


class Licences(Section):
    """On which terms text, teacher and student are had, for the cards of trained students: identifiers of the Hub, such
    as cc-by-sa-4.0, or other. What is embedded need not be named. Nothing is computed from them."""

    text: Licence | None = None
    teacher: Licence | None = None
    student: Licence | None = None
