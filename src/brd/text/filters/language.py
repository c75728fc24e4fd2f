"""Paragraphs in the languages that are wanted, by py3langid (bundled model of 140 codes, offline)."""

from functools import cache
from typing import Annotated, Any

from pydantic import Field

from brd.errors import BrdError, nearest
from brd.sections.section import Positive, Section, Share
from brd.text.filters.filter import Context, Decision, missing
from brd.text.paragraph import Paragraph

# Characters of a paragraph that are looked at: more cost time and tell no more.
LOOKED_AT = 400


class Settings(Section):
    """``keep`` are ISO 639 codes (null: ``text.language``), of which one has to be the likeliest, with ``confidence``.

    Short paragraphs are told with little confidence, though mostly right: 0 asks for none. Those of fewer than
    ``min_characters`` are kept, too short to tell.
    """

    keep: Annotated[list[str], Field(min_length=1)] | None = None
    confidence: Share = 0.0
    min_characters: Positive = 30


@cache
def _model() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise missing("language", "py3langid") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


class Language:
    """Drops paragraphs in other languages, or in none. Raises BrdError for a code that the library does not know."""

    def __init__(self, settings: Settings, context: Context) -> None:
        model = _model()
        self._classify = model.classify
        self._settings = settings
        self._keep = frozenset(settings.keep or [context.language.split("-")[0]])
        if unknown := sorted(self._keep.difference(model.labels)):
            hint = nearest(unknown[0], model.labels)
            raise BrdError(f"text.filters.language.keep: unknown language {unknown[0]!r}; {hint}")

    def judge(self, paragraph: Paragraph) -> Decision | None:
        if len(paragraph.text) < self._settings.min_characters:
            return None
        # It is made to read one line.
        language, confidence = self._classify(paragraph.text[:LOOKED_AT].replace("\n", " "))
        if language in self._keep and confidence >= self._settings.confidence:
            return None
        return Decision(f"{language} ({confidence:.2f})")
