"""Paragraphs that stood in the corpus before, letter by letter or word by word."""

from hashlib import blake2b

from brd.sections.section import Positive, Section
from brd.text.filters.filter import Context, Decision
from brd.text.ngrams import words_of
from brd.text.paragraph import Paragraph


class Settings(Section):
    """``fold`` compares words only: case, punctuation and spaces do not count. ``min_characters``: shorter paragraphs
    may be repeated (as the lines of a dialogue are)."""

    fold: bool = False
    min_characters: Positive = 1


class ExactDuplicates:
    """Keeps the first of equal paragraphs.

    Memory grows by a hash and a place for each paragraph kept. Hashes have 64 bits: two different paragraphs would be
    taken for equal once in about 4,000 corpora of 100 million paragraphs.
    """

    def __init__(self, settings: Settings, context: Context) -> None:
        self._settings = settings
        self._first: dict[int, tuple[str, int]] = {}

    def judge(self, paragraph: Paragraph) -> Decision | None:
        text = paragraph.text
        if len(text) < self._settings.min_characters:
            return None
        if self._settings.fold and (words := words_of(text)):
            text = " ".join(words)
        key = int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
        here = (paragraph.document, paragraph.index)
        first = self._first.setdefault(key, here)
        return None if first is here else Decision(f"as {first[0]}/{first[1]}")
