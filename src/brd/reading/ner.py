"""NER: the named entities of a sentence with their types and a short description (paper, basic reading behaviors)."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from brd.reading.behavior import (
    Judgement,
    Trait,
    few_shot,
    find_words,
    judged_parts,
    listed,
    malformed,
    micro_f1,
    one_line,
    sentence_and_cue,
)
from brd.reading.languages import Language

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
_ENTITY = re.compile(r"(?P<text>[^;]+?) \((?P<type>[^;:()]{1,40})(?:: (?P<description>[^;]*))?\)")


class NamedEntities:
    """``Entities: Lina Moreau (person: who opened the shop); Trieste (location: where the shop is)``, or ``none``."""

    name = "ner"
    skill = "entity_f1"
    cue = "Entities:"
    stop: tuple[str, ...] = ("\n",)
    max_new_tokens = 72

    def __init__(self, exemplars: dict[str, Any], language: Language) -> None:
        self._language = language
        shown = [(e["sentence"], {"entities": list(map(_from_yaml, e["entities"]))}) for e in exemplars["exemplars"]]
        self.prefix = few_shot(self, exemplars["task"], shown)

    def suffix(self, sentence: str) -> str:
        return sentence_and_cue(sentence, self.cue)

    def parse(self, raw: str) -> dict[str, Any] | None:
        if (pieces := listed(raw)) is None:
            return None
        entities: list[dict[str, Any]] = []
        for piece in pieces:
            # What has no bracket at its end is none, which the expression would only find out at every "(" of it.
            match = _ENTITY.fullmatch(piece) if piece.endswith(")") else None
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
            return malformed(finished, "name (type: description); ...")
        line, taken = one_line(sentence), set[str]()
        return judged_parts(parsed, "entities", lambda entity: self._checked(entity, line, taken), drop_bad_parts)

    def _checked(self, entity: dict[str, Any], sentence: str, taken: set[str]) -> dict[str, Any] | str:
        """The entity with its span in the one-line sentence, or why it is bad."""
        text = entity["text"]
        if entity["type"] not in TYPES:
            return "unknown entity type"
        if text.lower() in taken:
            return "entity repeated"
        span = find_words(text, sentence)
        if not span:
            return "entity not in the sentence"
        if not self._language.is_name(text, sentence[: span[0]], entity["type"]):
            return "not a name"
        taken.add(text.lower())
        return {**entity, "start": span[0], "end": span[1]}

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
        return micro_f1((_pairs(self.parse(raw) or {"entities": []}), _pairs(reference)) for raw, reference in pairs)

    def traits(self, content: dict[str, Any]) -> Iterator[Trait]:
        yield Trait("entities of a sentence", len(content["entities"]))
        for entity in content["entities"]:
            yield Trait("type of entity", entity["type"], entity["text"])


def _pairs(content: dict[str, Any]) -> set[tuple[str, str]]:
    return {(entity["text"].lower(), entity["type"]) for entity in content["entities"]}


def _from_yaml(line: str) -> dict[str, Any]:
    text, kind, description = (part.strip() for part in line.split("|"))
    return {"text": text, "type": kind, "description": description}
