"""Relations: who or what stands in which relation to whom or what, in the sentence's words (ours, not the paper's)."""

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
from brd.reading.languages import Language, words

_KEYS = ("subject", "relation", "object")


class Relations:
    """``Relations: Lina Moreau (opened: a small bakery); a small bakery (in: Trieste)``, or ``none``.

    Written as NER is: a small teacher kept to this form best (with bars or arrows it went on and on).
    """

    name = "relations"
    skill = "relation_f1"
    cue = "Relations:"
    stop: tuple[str, ...] = ("\n",)
    max_new_tokens = 72
    # The most words of a subject or an object: longer ones are clauses.
    longest = 8

    def __init__(self, exemplars: dict[str, Any], language: Language) -> None:
        self._language = language
        shown = [(e["sentence"], {"relations": list(map(_from_yaml, e["relations"]))}) for e in exemplars["exemplars"]]
        self.prefix = few_shot(self, exemplars["task"], shown)

    def suffix(self, sentence: str) -> str:
        return sentence_and_cue(sentence, self.cue)

    def parse(self, raw: str) -> dict[str, Any] | None:
        if (pieces := listed(raw)) is None:
            return None
        relations: list[dict[str, Any]] = []
        for piece in pieces:
            subject, _, rest = piece.partition(" (")
            relation, _, target = rest.partition(": ")
            parts = [part.strip() for part in (subject, relation, target[:-1])]
            if not target.endswith(")") or not all(parts):
                return None
            relations.append(dict(zip(_KEYS, parts, strict=True)))
        return {"relations": relations}

    def judge(self, raw: str, sentence: str, *, finished: bool = True, drop_bad_parts: bool = True) -> Judgement:
        parsed = self.parse(raw)
        if parsed is None or not finished:
            return malformed(finished, "subject (relation: object); ...")
        line = one_line(sentence)
        there, taken = set(self._language.stems(words(line))), set[tuple[str, ...]]()

        def checked(relation: dict[str, Any]) -> dict[str, Any] | str:
            if flaw := self._flaw(relation, line, there, taken):
                return flaw
            taken.add(_name(relation))
            return relation

        return judged_parts(parsed, "relations", checked, drop_bad_parts)

    def _flaw(self, relation: dict[str, Any], sentence: str, there: set[str], taken: set[tuple[str, ...]]) -> str:
        if _name(relation) in taken:
            return "relation repeated"
        ends = [relation["subject"], relation["object"]]
        if ends[0].lower() == ends[1].lower():
            return "subject and object are the same"
        for end in ends:
            if find_words(end, sentence) is None:
                return "subject or object not in the sentence"
            if not self._language.content_words(end):
                return "subject or object without content"
            if len(end.split()) > self.longest:
                return "subject or object too long"
        if not _apart(ends[0], ends[1], sentence):
            return "subject and object overlap"
        said = words(relation["relation"])
        if not said or any(self._language.stem(w) not in there for w in said if w not in self._language.function_words):
            return "relation not in the sentence"
        if any(set(said) <= set(words(end)) for end in ends):
            return "relation repeats its subject or object"
        return ""

    def render(self, content: dict[str, Any]) -> str:
        shown = (f"{r['subject']} ({r['relation']}: {r['object']})" for r in content["relations"])
        return " " + ("; ".join(shown) or "none")

    def is_empty(self, content: dict[str, Any]) -> bool:
        return not content["relations"]

    def given(self, reference: dict[str, Any]) -> str | None:
        return "" if reference["relations"] else None

    def agreement(self, pairs: Sequence[tuple[str, dict[str, Any]]]) -> float | None:
        """Micro F1 of whole relations, whatever their case, over sentences where the teacher found at least one."""
        return micro_f1((_names(self.parse(raw) or {"relations": []}), _names(reference)) for raw, reference in pairs)

    def traits(self, content: dict[str, Any]) -> Iterator[Trait]:
        yield Trait("relations of a sentence", len(content["relations"]))
        for relation in content["relations"]:
            yield Trait("relation", relation["relation"].lower(), f"{relation['subject']} ... {relation['object']}")


def _name(relation: dict[str, Any]) -> tuple[str, ...]:
    return tuple(relation[key].lower() for key in _KEYS)


def _names(content: dict[str, Any]) -> set[tuple[str, ...]]:
    return set(map(_name, content["relations"]))


def _apart(one: str, other: str, sentence: str) -> bool:
    """Whether two texts stand in the sentence at places that do not overlap."""

    def places(text: str) -> Iterator[tuple[int, int]]:
        place = find_words(text, sentence)
        while place:
            yield place
            place = find_words(text, sentence, place[0] + 1)

    # The first and the last place of each are enough: if these overlap, so do all between them.
    first, second = list(places(one)), list(places(other))
    return any(a[1] <= b[0] or b[1] <= a[0] for a in (first[0], first[-1]) for b in (second[0], second[-1]))


def _from_yaml(line: str) -> dict[str, Any]:
    return dict(zip(_KEYS, (part.strip() for part in line.split("|")), strict=True))
