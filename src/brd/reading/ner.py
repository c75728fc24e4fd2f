"""NER: the named entities of a sentence with their types and a short description (paper, basic reading behaviors)."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from brd.reading.behavior import FUNCTION_WORDS, Judgement, Trait, exemplars, one_line

TYPES = ("person", "organization", "location", "date", "event", "product", "work", "other")
# What models write for a type of the list.
_ALIASES = {
    "per": "person",
    "people": "person",
    "org": "organization",
    "organisation": "organization",
    "company": "organization",
    "institution": "organization",
    "loc": "location",
    "place": "location",
    "city": "location",
    "country": "location",
    "time": "date",
    "work of art": "work",
    "misc": "other",
}
# A capital letter, a digit, or a letter of a script without capitals.
_STANDS_OUT = re.compile(r"[^\W_a-zß-öø-ÿ]")
_ENTITY = re.compile(r"(?P<text>[^;]+?) \((?P<type>[^;:()]{1,40})(?:: (?P<description>[^;]*))?\)")


class NamedEntities:
    """``Entities: Lina Moreau (person: who opened the shop); Trieste (location: where the shop is)``, or ``none``."""

    name = "ner"
    skill = "entity_f1"
    cue = "Entities:"
    stop = ("\n",)
    max_new_tokens = 72

    def __init__(self, exemplar_set: str = "plain") -> None:
        data = exemplars(self.name, exemplar_set)
        shown = [
            self.suffix(e["sentence"]) + self.render({"entities": [_from_yaml(x) for x in e["entities"]]})
            for e in data["exemplars"]
        ]
        self.prefix = "\n\n".join([one_line(data["task"]), *shown]) + "\n\n"

    def suffix(self, sentence: str) -> str:
        return f"Sentence: {one_line(sentence)}\n{self.cue}"

    def parse(self, raw: str) -> dict[str, Any] | None:
        text = raw.strip()
        if "\n" in text:
            return None
        if text.rstrip(".").lower() == "none":
            return {"entities": []}
        entities: list[dict[str, Any]] = []
        for piece in text.removesuffix(".").split(";"):
            match = _ENTITY.fullmatch(piece.strip())
            if not match:
                return None
            kind = match["type"].strip().lower()
            entities.append(
                {
                    "text": match["text"].strip(),
                    "type": _ALIASES.get(kind, kind),
                    "description": (match["description"] or "").strip(),
                }
            )
        return {"entities": entities}

    def judge(self, raw: str, sentence: str, *, finished: bool = True, drop_bad_parts: bool = True) -> Judgement:
        parsed = self.parse(raw)
        if parsed is None or not finished:
            reason = "cut off before its end" if not finished else "not of the form 'name (type: description); ...'"
            return Judgement("malformed", reason, None, 0, 0)
        line = one_line(sentence)
        good: list[dict[str, Any]] = []
        reasons: list[str] = []
        for entity in parsed["entities"]:
            reason, span = self._check(entity, line, good)
            if span:
                good.append({**entity, "start": span[0], "end": span[1]})
            else:
                reasons.append(reason)
        parts = len(parsed["entities"])
        if reasons and (not good or not drop_bad_parts):
            return Judgement("rejected", reasons[0], parsed, parts, len(good))
        return Judgement("verified", "", {"entities": good}, parts, len(good))

    @staticmethod
    def _check(
        entity: dict[str, Any], sentence: str, accepted: list[dict[str, Any]]
    ) -> tuple[str, tuple[int, int] | None]:
        """Why an entity is bad, or its span in the one-line sentence."""
        text = entity["text"]
        if entity["type"] not in TYPES:
            return "unknown entity type", None
        if any(other["text"].lower() == text.lower() for other in accepted):
            return "entity repeated", None
        if not (span := _as_words(text, sentence)):
            return "entity not in the sentence", None
        # "She" and "My companion" begin sentences, "the old mill" is no name: something else must stand out.
        if not any(w.lower() not in FUNCTION_WORDS and _STANDS_OUT.search(w) for w in text.split()):
            return "not a name", None
        return "", span

    def render(self, content: dict[str, Any]) -> str:
        entities = content["entities"]
        if not entities:
            return " none"
        shown = (f"{e['text']} ({e['type']}{': ' + e['description'] if e['description'] else ''})" for e in entities)
        return " " + "; ".join(shown)

    def is_empty(self, content: dict[str, Any]) -> bool:
        return not content["entities"]

    def given(self, reference: dict[str, Any]) -> str | None:
        return "" if reference["entities"] else None

    def agreement(self, pairs: Sequence[tuple[str, dict[str, Any]]]) -> float | None:
        """Micro F1 of (name, type) pairs over sentences where the teacher found at least one entity."""
        matched = written = wanted = 0
        for raw, reference in pairs:
            mine = {(e["text"].lower(), e["type"]) for e in (self.parse(raw) or {"entities": []})["entities"]}
            teachers = {(e["text"].lower(), e["type"]) for e in reference["entities"]}
            matched += len(mine & teachers)
            written += len(mine)
            wanted += len(teachers)
        return 2 * matched / (written + wanted) if pairs else None

    def traits(self, content: dict[str, Any]) -> Iterator[Trait]:
        yield Trait("entities of a sentence", len(content["entities"]))
        for entity in content["entities"]:
            yield Trait("type of entity", entity["type"], entity["text"])


def _as_words(text: str, sentence: str) -> tuple[int, int] | None:
    """Where ``text`` first stands between what are no letters, digits or underscores. What the pattern
    ``(?<!\\w)text(?!\\w)`` finds; but compiling one for each name takes longer than all else about it."""
    start = sentence.find(text)
    while start >= 0:
        end = start + len(text)
        if not _in_word(sentence[start - 1 : start]) and not _in_word(sentence[end : end + 1]):
            return start, end
        start = sentence.find(text, start + 1)
    return None


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _from_yaml(line: str) -> dict[str, Any]:
    text, kind, description = (part.strip() for part in line.split("|"))
    return {"text": text, "type": kind, "description": description}
