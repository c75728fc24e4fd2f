"""Paragraphs that repeat themselves, by the rules of Gopher (Rae et al. 2021, arXiv 2112.11446, table A1)."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from brd.sections.section import Positive, Section, Share
from brd.text.filters.filter import Context, Decision
from brd.text.ngrams import words_of
from brd.text.paragraph import Paragraph

Shares = dict[Annotated[int, Field(ge=1, le=50)], Share]


class Settings(Section):
    """The largest shares, by Gopher's numbers; words are runs of letters and digits, shares of words in characters.

    ``lines`` and ``line_characters``: lines that stood there before (paragraphs of several lines: layout blank_line);
    ``top_ngrams``: the commonest run of so many words, where it occurs twice; ``repeated_ngrams``: all runs of so many
    words that stood there before. Paragraphs of fewer than ``min_words`` are judged by their lines only.
    """

    lines: Share = 0.30
    line_characters: Share = 0.20
    top_ngrams: Shares = {2: 0.20, 3: 0.18, 4: 0.16}
    repeated_ngrams: Shares = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    min_words: Positive = 50


class Repetition:
    """Drops what is above a share.

    Departs from Gopher, who judge documents (of 50 words or more): a run of words counts only where it does occur
    twice, and of repeated runs the first occurrence does not count (as in FineWeb's pipeline).
    """

    def __init__(self, settings: Settings, context: Context) -> None:
        self._settings = settings

    def judge(self, paragraph: Paragraph) -> Decision | None:
        settings = self._settings
        if "\n" in paragraph.text:
            number, characters = _repeated_lines([line.strip() for line in paragraph.text.split("\n")])
            if number > settings.lines:
                return Decision(f"repeated lines {number:.2f}")
            if characters > settings.line_characters:
                return Decision(f"characters in repeated lines {characters:.2f}")
        words = words_of(paragraph.text)
        if len(words) < settings.min_words:
            return None
        total = sum(map(len, words))
        shares = [
            ("commonest {}-gram", _top, settings.top_ngrams),
            ("repeated {}-grams", _repeated, settings.repeated_ngrams),
        ]
        for name, share_of, limits in shares:
            for n, most in sorted(limits.items()):
                grams = list(zip(*(words[i:] for i in range(n)), strict=False))
                if len(set(grams)) == len(grams):
                    # Nor does a longer run stand there twice.
                    break
                if (share := share_of(grams, n) / total) > most:
                    return Decision(f"{name.format(n)} {share:.2f}")
        return None


def _repeated_lines(lines: Sequence[str]) -> tuple[float, float]:
    """The share of lines, and of characters in lines, that stood there before."""
    seen: set[str] = set()
    number = characters = 0
    for line in lines:
        if line in seen:
            number, characters = number + 1, characters + len(line)
        seen.add(line)
    return number / len(lines), characters / max(1, sum(map(len, lines)))


def _top(grams: Sequence[tuple[str, ...]], n: int) -> int:
    """Characters in the commonest run of ``n`` words, overlapping ones counted once: 0 where none occurs twice."""
    gram, number = Counter(grams).most_common(1)[0]
    occurrences = at = 0
    while number > 1 and at < len(grams):
        here = grams[at] == gram
        occurrences, at = occurrences + here, at + (n if here else 1)
    return occurrences * sum(map(len, gram)) if occurrences > 1 else 0


def _repeated(grams: Sequence[tuple[str, ...]], n: int) -> int:
    """Characters in runs of ``n`` words that stood there before, none counted twice."""
    seen: set[tuple[str, ...]] = set()
    characters = at = 0
    while at < len(grams):
        if grams[at] in seen:
            characters, at = characters + sum(map(len, grams[at])), at + n
        else:
            seen.add(grams[at])
            at += 1
    return characters
