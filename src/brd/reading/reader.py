"""The reading loop: ask the teacher for what is not yet known, judge, store."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from brd.reading.behavior import Behavior, behaviors_of
from brd.reading.chosen import (
    Progress,
    ReadParagraph,
    iter_paragraphs,
    load_paragraphs,
    save_paragraphs,
    write_paragraphs,
)
from brd.reading.floor import Floor
from brd.reading.known import Known, known_to
from brd.reading.lookup import Lookup
from brd.reading.naming import Name, Names, judges, names_in
from brd.reading.store import Reading, Store, judged, load, shards, with_judgement
from brd.reading.verifier import verifier_prints
from brd.recipe import Recipe
from brd.teachers.teacher import Answer, Teacher
from brd.text.corpus import Corpus

# Sentences that are handed to the teacher at once: bounds memory, and is large against a batch.
WINDOW = 8192
# Paragraphs whose readings are looked up at once.
GROUP = 1024


def read(
    recipe: Recipe,
    folder: Path,
    teacher: Teacher,
    progress: Progress | None = None,
    corpus: Corpus | None = None,
    chosen: Iterable[ReadParagraph] | None = None,
) -> Counter[str]:
    """Read the corpus, or paragraphs that were ``chosen`` elsewhere, into ``folder``; returns counts. An interrupted
    call goes on where it stopped.

    In memory are some thousands of sentences, the readings of a shard, and 24 bytes for each reading that is stored or
    known (with ``text.order`` shuffled the corpus as well). ``progress`` is told (what, done, of) now and then. Raises
    BrdError when a part has no sentence, and when too few answers are verified (``reading.floor``).
    """
    counts: Counter[str] = Counter()
    with Store(folder, recipe.reading.shard_rows) as store:
        counts["shards_mended"] = store.mended
        if chosen is None:
            save_paragraphs(recipe, folder, counts, progress, corpus)
        else:
            write_paragraphs(folder, chosen, counts)
        behaviors, identity = behaviors_of(recipe.reading), teacher_hash(teacher)
        known = known_to(recipe, names := Names(recipe, behaviors, identity), folder.parent)
        (folder / "teacher.json").write_text(json.dumps({"hash": identity, **teacher.identity()}, indent=2) + "\n")
        judged_by = judges(behaviors)
        store.rejudge(
            lambda reading: _judged(reading, judged_by(reading), recipe),
            verifier_prints(behaviors, drop_bad_parts=recipe.reading.drop_bad_entities),
        )
        for name in names:
            _read_name(recipe, name, names.behavior_of(name), teacher, known, store, counts, progress)
    return counts


def _read_name(
    recipe: Recipe,
    name: Name,
    behavior: Behavior,
    teacher: Teacher,
    known: Known,
    store: Store,
    counts: Counter[str],
    progress: Progress | None,
) -> None:
    limit = name.max_new_tokens
    if known:
        # First of all, so that whatever happens while the teacher is asked these are there.
        for _, places in _missing(name, store):
            answers = known.answers(places)
            store.append(
                reading_of(key, *places[key], behavior, answers[key], name, recipe) for key in places if key in answers
            )
            known.note(store.folder)
    floor = _floor(recipe, name, store)
    of = f"_{name.language}" if name.language else ""
    total = counts[f"sentences_train{of}"] + counts[f"sentences_held_out{of}"]
    asked = 0
    for done, places in _missing(name, store):
        keys = list(places)
        suffixes = [behavior.suffix(paragraph.sentence(number)) for paragraph, number in places.values()]
        for index, answer in teacher.answer(behavior.prefix, suffixes, stop=behavior.stop, max_new_tokens=limit):
            key = keys[index]
            reading = reading_of(key, *places[key], behavior, answer, name, recipe)
            store.append([reading])
            floor.saw(reading)
            done += 1
            asked += 1
            counts[f"{behavior.name}_asked"] += 1
            counts["prompt_tokens"] += answer.prompt_tokens
            counts["new_tokens"] += answer.new_tokens
            counts["cached_tokens"] += answer.cached_tokens
            counts["retries"] += answer.retries
            if progress:
                progress(name.label, done, total)
    counts[f"{behavior.name}_known_before"] += total - asked


def _missing(name: Name, store: Store) -> Iterator[tuple[int, dict[str, tuple[ReadParagraph, int]]]]:
    """The sentences without a reading by key, each where it stands first and so many at a time as are asked at once;
    and how many sentences before them need none any more. What was given out before is to be in the store by then."""
    stream = (
        (paragraph, number)
        for paragraph in iter_paragraphs(store.folder)
        if name.language in ("", paragraph.language)
        for number in paragraph.readable
    )
    waiting: dict[str, tuple[ReadParagraph, int]] = {}
    seen = 0
    while some := list(itertools.islice(stream, WINDOW)):
        seen += len(some)
        keys = [name.key(paragraph.sentence(number)) for paragraph, number in some]
        for key, place, there in zip(keys, some, store.has(keys), strict=True):
            if not there:
                waiting.setdefault(key, place)
        while len(waiting) >= WINDOW:
            yield seen - len(waiting), dict(itertools.islice(waiting.items(), WINDOW))
            waiting = dict(itertools.islice(waiting.items(), WINDOW, None))
    if waiting:
        yield seen - len(waiting), waiting


def _floor(recipe: Recipe, name: Name, store: Store) -> Floor:
    """The alarm of a behavior, which knows its last answers to this prompt from earlier calls."""
    settings = recipe.reading
    if settings.floor is None:
        return Floor(settings, name.label, store.folder.parent)
    before = store.last(name.behavior, lambda r: r.key == name.key(r.text), settings.floor_window)
    return Floor(settings, name.label, store.folder.parent, before)


def _judged(reading: Reading, behavior: Behavior, recipe: Recipe) -> Reading:
    drop = recipe.reading.drop_bad_entities
    return with_judgement(
        reading, behavior.judge(reading.raw, reading.text, finished=reading.finished, drop_bad_parts=drop)
    )


def reading_of(
    key: str,
    paragraph: ReadParagraph,
    number: int,
    behavior: Behavior,
    answer: Answer,
    name: Name,
    recipe: Recipe,
) -> Reading:
    """The judged reading of an answer; the sentence is where it is first met."""
    span, sentence = paragraph.spans[number], paragraph.sentence(number)
    drop = recipe.reading.drop_bad_entities
    return Reading(
        key=key,
        document=paragraph.document,
        paragraph=paragraph.index,
        sentence=number,
        start=span.start,
        end=span.end,
        text=sentence,
        behavior=behavior.name,
        raw=answer.text,
        finished=answer.finished,
        teacher=name.teacher,
        prompt_hash=name.prompt_hash,
        prompt_tokens=answer.prompt_tokens,
        new_tokens=answer.new_tokens,
        **judged(behavior.judge(answer.text, sentence, finished=answer.finished, drop_bad_parts=drop)),
    )


def teacher_hash(teacher: Teacher) -> str:
    return hashlib.sha256(json.dumps(teacher.identity(), sort_keys=True).encode()).hexdigest()[:16]


Found = dict[tuple[int, str], Reading]
"""The readings of one paragraph, by the number of the sentence and the behavior."""


def iter_readings(folder: Path, names: Names, *held_out: bool) -> Iterator[tuple[ReadParagraph, Found]]:
    """The paragraphs of these parts, in the order of the corpus, with the readings of some behaviors that are there; a
    few thousand sentences at a time in memory."""
    lookup = Lookup(shards(folder))
    stream = (paragraph for paragraph in iter_paragraphs(folder) if paragraph.held_out in held_out)
    while some := list(itertools.islice(stream, GROUP)):
        places = [
            (at, n, names.of(behavior, p.language))
            for at, p in enumerate(some)
            for n in p.readable
            for behavior in names.behaviors
        ]
        rows = lookup.where([name.key(some[at].sentence(n)) for at, n, name in places])
        there = np.unique(rows[rows >= 0])
        by_row = dict(zip(there.tolist(), lookup.readings(there), strict=True))
        found: list[Found] = [{} for _ in some]
        for (at, number, name), row in zip(places, rows.tolist(), strict=True):
            if row >= 0:
                found[at][number, name.behavior] = by_row[row]
        yield from zip(some, found, strict=True)


class Readings:
    """The readings that a recipe wants, looked up by behavior and sentence text."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.paragraphs = load_paragraphs(folder)
        self.behaviors = behaviors_of(recipe.reading)
        self._names = names_in(recipe, folder, self.behaviors)
        keys = (
            self._names.of(behavior, p.language).key(p.sentence(n))
            for p in self.paragraphs
            for n in p.readable
            for behavior in self.behaviors
        )
        self._found = load(folder, keys)

    def get(self, behavior: str, sentence: str, language: str = "") -> Reading | None:
        """The reading of a sentence; ``language`` (a code) where the recipe names those that are read."""
        return self._found.get(self._names.of(behavior, language).key(sentence))

    def all(self, held_out: bool) -> Iterator[tuple[ReadParagraph, int, Reading]]:
        """Every reading of one part with its place, in the order of the corpus and of the behaviors."""
        for paragraph in self.paragraphs:
            if paragraph.held_out == held_out:
                for number in paragraph.readable:
                    for name in self.behaviors:
                        if reading := self.get(name, paragraph.sentence(number), paragraph.language):
                            yield paragraph, number, reading


def as_taught(behavior: Behavior, reading: Reading, verified_only: bool) -> str | None:
    """What follows the cue where the reading is taught, or None where it is not usable.

    Verified readings stand in their canonical form, rejected and malformed ones (unless ``verified_only``) as the
    teacher wrote them.
    """
    content = reading.parsed()
    if reading.verdict == "verified" and content is not None:
        return behavior.render(content)
    if verified_only or not reading.raw.strip():
        return None
    return " " + reading.raw.strip()


def funnel(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """How many readings were asked for, well formed and verified, by behavior, and why the others were not."""
    behaviors = behaviors_of(recipe.reading)
    counts: dict[str, Counter[str]] = {name: Counter() for name in behaviors}
    reasons: dict[str, Counter[str]] = {name: Counter() for name in behaviors}
    for _, found in iter_readings(folder, names_in(recipe, folder, behaviors), False, True):
        for (_, name), reading in found.items():
            counts[name].update(asked=1, parts=reading.parts, parts_verified=reading.parts_verified)
            counts[name][reading.verdict] += 1
            if reading.verdict == "verified":
                counts[name]["empty"] += behaviors[name].is_empty(reading.parsed() or {})
            else:
                reasons[name][reading.reason] += 1
    return {
        name: {
            "asked": n["asked"],
            "well_formed": n["asked"] - n["malformed"],
            **{key: n[key] for key in ("verified", "rejected", "empty", "parts", "parts_verified")},
            "reasons": dict(reasons[name].most_common()),
        }
        for name, n in counts.items()
    }
