"""Paragraphs of a length within limits."""

from pydantic import model_validator

from brd.sections.section import Positive, Section
from brd.text.filters.filter import Context, Decision
from brd.text.ngrams import words_of
from brd.text.paragraph import Paragraph


class Settings(Section):
    """Limits of characters and of words (runs of letters and digits); null is none."""

    min_characters: Positive | None = None
    max_characters: Positive | None = None
    min_words: Positive | None = None
    max_words: Positive | None = None

    @model_validator(mode="after")
    def _limits(self) -> "Settings":
        for least, most in (("min_characters", "max_characters"), ("min_words", "max_words")):
            low, high = getattr(self, least), getattr(self, most)
            if low is not None and high is not None and low > high:
                raise ValueError(f"{least} ({low}) is above {most} ({high})")
        if not any(self.model_dump().values()):
            raise ValueError("should set at least one of min_characters, max_characters, min_words and max_words")
        return self


class Length:
    """Drops paragraphs beyond the limits."""

    def __init__(self, settings: Settings, context: Context) -> None:
        self._characters = (settings.min_characters or 0, settings.max_characters)
        self._words = (settings.min_words or 0, settings.max_words)

    def judge(self, paragraph: Paragraph) -> Decision | None:
        if broken := _broken(len(paragraph.text), "characters", *self._characters):
            return Decision(broken)
        if self._words != (0, None) and (broken := _broken(len(words_of(paragraph.text)), "words", *self._words)):
            return Decision(broken)
        return None


def _broken(number: int, what: str, least: int, most: int | None) -> str:
    return f"{number} {what}" if number < least or (most is not None and number > most) else ""
