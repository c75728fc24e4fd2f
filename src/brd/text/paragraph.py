"""The record that a corpus is made of."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Paragraph:
    """``document`` names the source text (book, article) independently of the machine; ``index`` counts within it."""

    document: str
    index: int
    text: str
