"""What was read, in figures: verdicts by behavior and length, why readings failed, what they hold, what repeats.

One pass over the store, a few readings at a time: memory holds counters, small samples, and eight bytes for each
sentence of the corpus. Every different sentence counts once, however often it stands in the corpus.
"""

import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from brd.reading.behavior import Behavior, WithTraits, behaviors_of, one_line, prompts
from brd.reading.chosen import iter_paragraphs
from brd.reading.naming import names_in
from brd.reading.store import Reading, every
from brd.reading.tally import Tally, text_hash
from brd.recipe import Recipe

# Different strings (names, questions) that are counted exactly, of each kind.
ROOM = 20_000
# Bins of sentence lengths, by the most words in them.
BINS = {8: "1 to 8", 15: "9 to 15", 24: "16 to 24", 39: "25 to 39"}
LONGEST = "40 or more"
EXAMPLES = 3
COMMONEST = 5
# Reasons and labels are few unless a behavior takes them from what a model wrote; the others are then one more.
LABELS = 200
OTHERS = "(others)"
# Numbers from here on are counted as one.
MOST = 1000


def audit(
    recipe: Recipe, folder: Path, progress: Callable[[int], None] | None = None, room: int = ROOM
) -> dict[str, Any]:
    """The figures of the readings in ``folder`` that the recipe wants, whether reading has come to its end or not.

    ``behaviors``: for each ``asked``, ``well_formed``, ``verified``, and of the verified ones ``grounded`` (all parts
    verified, and there are some) and ``empty``; ``not_asked`` sentences; ``parts`` and ``parts_verified``; the same
    counts ``by_length`` of the sentence and ``by_language`` (where the recipe names languages); ``reasons`` of failure
    and ``dropped`` (of verified readings that lost a part), commonest first, with examples; ``repeats``: different ones
    among the readings that hold something, and how many say the same as that of another sentence; ``labels`` and
    ``numbers``: what the behavior counts itself (``brd.reading.behavior.Trait``). ``sentences``: places in the corpus,
    different sentences, places whose sentence stands elsewhere too. ``other_readings`` lie in the store, but are of
    another teacher, prompt or corpus.
    """
    behaviors = behaviors_of(recipe.reading)
    names = names_in(recipe, folder, behaviors)
    corpus = _Corpus(folder, by_language=bool(behaviors.languages))
    found = {name: _Found(behaviors.each(name), room) for name in behaviors}
    done = others = 0
    for readings in every(folder):
        mine = [(r, name.language) for r in readings if (name := names.named(r))]
        wanted = [one for one, there in zip(mine, corpus.holds(mine), strict=True) if there]
        for reading, code in wanted:
            found[reading.behavior].add(reading, code)
        done += len(readings)
        others += len(readings) - len(wanted)
        if progress:
            progress(done)
    return {
        "language": ", ".join(behaviors.languages) or recipe.text.language,
        "teacher": names.teacher,
        "prompts": prompts(behaviors),
        "sentences": corpus.figures(),
        "other_readings": others,
        "behaviors": {name: f.figures(corpus.distinct) for name, f in found.items()},
    }


class _Corpus:
    """The sentences that are to be read, as hashes: which there are, and which stand at several places."""

    def __init__(self, folder: Path, by_language: bool) -> None:
        hashes = array("Q")
        self._scripts: Counter[str] = Counter()
        for paragraph in iter_paragraphs(folder):
            for number in paragraph.readable:
                sentence = paragraph.sentence(number)
                hashes.append(_place(sentence, paragraph.language if by_language else ""))
                self._scripts.update(scripts(sentence))
        self._places = len(hashes)
        self._hashes, counts = np.unique(np.array(hashes, dtype=np.uint64), return_counts=True)
        self.distinct = len(self._hashes)
        several = np.flatnonzero(counts > 1)
        self._repeated = int(counts[several].sum())
        commonest = several[np.argsort(-counts[several], kind="stable")][:COMMONEST]
        self._commonest = {int(self._hashes[n]): int(counts[n]) for n in commonest}
        self._texts: dict[int, str] = {}

    def holds(self, readings: list[tuple[Reading, str]]) -> list[bool]:
        """Of each reading and the language that it was asked in, whether its sentence is one of these."""
        hashes = np.array([_place(reading.text, code) for reading, code in readings], dtype=np.uint64)
        for number, (reading, _) in zip(hashes.tolist(), readings, strict=True):
            if number in self._commonest:
                self._texts[number] = reading.text
        if not self.distinct:
            return [False] * len(readings)
        places = np.searchsorted(self._hashes, hashes).clip(max=self.distinct - 1)
        return [bool(there) for there in self._hashes[places] == hashes]

    def figures(self) -> dict[str, Any]:
        commonest = [(self._texts[n], count) for n, count in self._commonest.items() if n in self._texts]
        return {
            "places": self._places,
            "distinct": self.distinct,
            "repeated": self._repeated,
            "commonest": _texts(commonest),
            "scripts": dict(self._scripts.most_common()),
        }


def _place(sentence: str, language: str) -> int:
    """Names a sentence, where languages are told apart one of a language."""
    return text_hash(f"{language}\0{sentence}" if language else sentence)


class _Found:
    """What was found of one behavior so far, in all languages that it asks in."""

    def __init__(self, asked: dict[str, Behavior], room: int) -> None:
        self._asked, self._room = asked, room
        self._prompted = frozenset[str]().union(*(scripts(behavior.prefix) for behavior in asked.values()))
        self._languages: dict[str, Counter[str]] = {code: Counter() for code in asked if code}
        self._counts: dict[str, Counter[str]] = {label: Counter() for label in (*BINS.values(), LONGEST)}
        self._reasons, self._dropped, self._foreign = _Examples(), _Examples(), _Examples()
        self._scripts: Counter[str] = Counter()
        self._lines = Tally(room)
        self._labels: dict[str, _Labels] = {}
        self._numbers: defaultdict[str, Counter[int]] = defaultdict(Counter)

    def add(self, reading: Reading, code: str) -> None:
        behavior = self._asked[code]
        length = len(reading.text.split())
        bins = self._counts[next((label for most, label in BINS.items() if length <= most), LONGEST)]
        content = reading.parsed() if reading.verdict == "verified" else None
        empty = content is not None and behavior.is_empty(content)
        for counts in (bins, *([self._languages[code]] if code else [])):
            counts["asked"] += 1
            counts["well_formed"] += reading.verdict != "malformed"
            counts["parts"] += reading.parts
            counts["parts_verified"] += reading.parts_verified
            counts["verified"] += content is not None
            counts["empty"] += empty
            counts["grounded"] += content is not None and not empty and reading.parts == reading.parts_verified
        written = scripts(reading.raw)
        self._scripts.update(written)
        # The form of a reading is written as in the prompt, whatever the language of the sentence.
        for script in written - self._prompted - scripts(reading.text):
            self._foreign.add(script, reading)
        if content is None:
            self._reasons.add(reading.reason or reading.verdict, reading)
            return
        if reading.parts > reading.parts_verified:
            whole = behavior.judge(reading.raw, reading.text, finished=reading.finished, drop_bad_parts=False)
            self._dropped.add(whole.reason or "unknown", reading)
        if not empty:
            self._look_into(content, behavior)

    def _look_into(self, content: dict[str, Any], behavior: Behavior) -> None:
        line = one_line(behavior.render(content))
        self._lines.add(line)
        self._numbers["words of the reading"][min(len(line.split()), MOST)] += 1
        for trait in behavior.traits(content) if isinstance(behavior, WithTraits) else ():
            if isinstance(trait.value, int):
                self._numbers[trait.about][min(trait.value, MOST)] += 1
            else:
                table = self._labels.setdefault(trait.about, _Labels(self._room))
                table.add(trait.value, one_line(trait.name))

    def figures(self, sentences: int) -> dict[str, Any]:
        every_length = sum(self._counts.values(), Counter())
        return {
            **_counts(every_length),
            "not_asked": sentences - every_length["asked"],
            "by_length": [{"words": label, **_counts(counts)} for label, counts in self._counts.items()],
            "by_language": [{"language": code, **_counts(counts)} for code, counts in self._languages.items()],
            "reasons": self._reasons.figures(),
            "dropped": self._dropped.figures(),
            "repeats": _tallied(self._lines, COMMONEST, 2),
            "labels": {about: labels.figures() for about, labels in self._labels.items()},
            "numbers": {about: _spread(numbers) for about, numbers in self._numbers.items()},
            "scripts": dict(self._scripts.most_common()),
            "other_scripts": self._foreign.figures(),
        }


class _Examples:
    """Counts by reason, each with the readings whose keys are lowest: a sample that does not hang on the order."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: defaultdict[str, list[tuple[str, str, str]]] = defaultdict(list)

    def add(self, reason: str, reading: Reading) -> None:
        reason = _bounded(reason, self._counts)
        self._counts[reason] += 1
        kept = self._examples[reason]
        if len(kept) < EXAMPLES or reading.key < kept[-1][0]:
            kept[:] = sorted([*kept, (reading.key, reading.text, reading.raw)])[:EXAMPLES]

    def figures(self) -> list[dict[str, Any]]:
        return [
            {
                "reason": reason,
                "n": n,
                "examples": [{"sentence": one_line(text), "raw": raw} for _, text, raw in self._examples[reason]],
            }
            for reason, n in self._counts.most_common()
        ]


class _Labels:
    """Counts by label, and the names that stand behind each."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._counts: Counter[str] = Counter()
        self._names = Tally(room)
        self._by_label: defaultdict[str, Tally] = defaultdict(lambda: Tally(room))

    def add(self, label: str, name: str) -> None:
        label = _bounded(label, self._counts)
        self._counts[label] += 1
        if name:
            self._names.add(name)
            self._by_label[label].add(name)

    def figures(self) -> dict[str, Any]:
        rows = []
        for label, n in self._counts.most_common():
            names = self._by_label.get(label)
            rows.append({"label": label, "n": n, **(_tallied(names, COMMONEST) if names else {})})
        named = _tallied(self._names, COMMONEST) if self._names.total else {}
        return {"n": self._counts.total(), **named, "rows": rows}


def _bounded(label: str, known: Counter[str]) -> str:
    label = one_line(label)
    return label if label in known or len(known) < LABELS else OTHERS


def _counts(counts: Counter[str]) -> dict[str, int]:
    keys = ("asked", "well_formed", "verified", "grounded", "empty", "parts", "parts_verified")
    return {key: counts[key] for key in keys}


def _tallied(tally: Tally, most: int, least: int = 1) -> dict[str, Any]:
    """``exact`` is false where the other figures are estimates."""
    return {
        "n": tally.total,
        "distinct": tally.distinct,
        "shared": tally.shared,
        "exact": tally.exact,
        "commonest": _texts(tally.commonest(most, least)),
    }


def _texts(counted: Iterable[tuple[str, int]]) -> list[dict[str, Any]]:
    return [{"text": one_line(text), "n": n} for text, n in counted]


def _spread(numbers: Counter[int]) -> dict[str, Any]:
    ordered = sorted(numbers)
    ends = np.cumsum([numbers[value] for value in ordered])
    total = int(ends[-1])

    def at(share: float) -> int:
        return ordered[int(np.searchsorted(ends, share * total))]

    mean = sum(value * n for value, n in numbers.items()) / total
    return {"n": total, "mean": round(mean, 2), "median": at(0.5), "p90": at(0.9), "most": ordered[-1]}


def scripts(text: str) -> frozenset[str]:
    """The scripts of a text's letters (``Latin``, ``Cyrillic``, ``Han``), by the names that Unicode gives them."""
    if text.isascii():
        return _LATIN if any(map(str.isalpha, text)) else frozenset()
    return frozenset(filter(None, map(_script, set(text))))


_LATIN = frozenset(["Latin"])


@lru_cache(maxsize=65536)
def _script(character: str) -> str:
    """Empty for what is no letter, or a mark that any script may use."""
    # The form behind a ligature, a full-width or a raised letter is of the script that it is read as.
    letter = unicodedata.normalize("NFKC", character)[0]
    if unicodedata.category(letter) not in ("Lu", "Ll", "Lt", "Lo"):
        return ""
    name = unicodedata.name(letter, "UNKNOWN").split(" ")[0].split("-")[0]
    return "Han" if name == "CJK" else name.capitalize()
