"""The record that a corpus is made of."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Paragraph:
    """``document`` names the source text (book, article) independently of the machine; ``index`` counts within it.

    ``language`` is what its record or file says of it, as written there; empty where nothing does.
    """

    document: str
    index: int
    text: str
    language: str = ""
