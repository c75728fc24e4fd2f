"""The reading loop: choose the sentences, ask the teacher for what is not yet known, judge, store."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from brd.errors import BrdError
from brd.reading.behavior import Behavior, behaviors_of
from brd.reading.floor import Floor
from brd.reading.languages import language_code
from brd.reading.lookup import Known, Lookup
from brd.reading.naming import Name, Names, judges, names_in
from brd.reading.parquet import read_pieces, writer
from brd.reading.store import Reading, Store, judged, load, shards, with_judgement
from brd.reading.verifier import verifier_prints
from brd.recipe import Recipe
from brd.sections.text import Text
from brd.teachers.teacher import Answer, Teacher
from brd.text.corpus import Corpus
from brd.text.paragraph import Paragraph
from brd.text.sentences import Span, limit_broken, split

# Sentences that are handed to the teacher at once: bounds memory, and is large against a batch.
WINDOW = 8192
# Paragraphs that are written at once, and whose readings are looked up at once.
GROUP = 1024


@dataclass(frozen=True, slots=True)
class ReadParagraph:
    """A paragraph that was chosen for reading. ``readable`` numbers the sentences within the length limits;
    ``language`` is the code of what it is written in."""

    document: str
    index: int
    text: str
    held_out: bool
    spans: tuple[Span, ...]
    readable: tuple[int, ...]
    language: str = ""

    def sentence(self, number: int) -> str:
        return self.text[self.spans[number].start : self.spans[number].end]


Part = Literal["train", "held_out", "healing"]


def part_of(document: str, text: Text) -> Part:
    """The part of the corpus that a source text belongs to: by the hash of its id, so the same in every run."""
    place = int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big") / 2**64
    if place < text.held_out:
        return "held_out"
    return "healing" if place >= 1 - text.healing else "train"


def language_of(paragraph: Paragraph, text: Text) -> str:
    """The code of the language that a paragraph is in: as its record or file says, else as the recipe does.

    Another way to know it (detection) belongs between these two.
    """
    return language_code(paragraph.language or text.language)


def in_languages(
    recipe: Recipe, corpus: Corpus | None = None, counts: Counter[str] | None = None
) -> Iterator[tuple[Paragraph, str]]:
    """The paragraphs of the corpus in the languages that are read (all of them where the recipe names none), each with
    its own; ``counts`` is told of those in other languages."""
    wanted = recipe.reading.languages
    for paragraph in corpus or Corpus(recipe.text):
        code = language_of(paragraph, recipe.text)
        if wanted is None or code in wanted:
            yield paragraph, code
        elif counts is not None:
            counts["paragraphs_other_language"] += 1
            # A field may hold anything; its first hundred different values tell what is wrong.
            if (key := f"paragraphs_other_language_{code}") in counts or len(counts) < 100:
                counts[key] += 1


def choose(recipe: Recipe, counts: Counter[str], corpus: Corpus | None = None) -> Iterator[ReadParagraph]:
    """Whole paragraphs of the corpus, in order, until both parts have their number of sentences.

    ``counts`` is told of documents, paragraphs, sentences of each part and of sentences beyond the length limits.
    """
    settings, wanted = recipe.text, recipe.reading
    room = {False: wanted.sentences, True: wanted.held_out_sentences}
    documents: set[str] = set()
    for paragraph, language in in_languages(recipe, corpus, counts):
        if paragraph.document not in documents:
            counts["documents_seen"] += 1
            if settings.order == "corpus":
                # The paragraphs of a document come one after another.
                documents.clear()
            documents.add(paragraph.document)
        part = part_of(paragraph.document, settings)
        if part == "healing":
            continue
        held_out = part == "held_out"
        if room[held_out] <= 0:
            if max(room.values()) <= 0:
                return
            continue
        # A recipe's own code stays as it is written: the splitter may know it better than we do.
        known = paragraph.language or wanted.languages
        spans = tuple(split(paragraph.text, language if known else settings.language))
        broken = [limit_broken(s, settings.min_characters, settings.max_characters) for s in spans]
        counts.update(f"sentences_{reason.replace(' ', '_')}" for reason in broken if reason)
        readable = tuple(number for number, reason in enumerate(broken) if not reason)
        counts[f"paragraphs_{part}"] += 1
        counts[f"sentences_{part}"] += len(readable)
        if wanted.languages:
            counts[f"sentences_{part}_{language}"] += len(readable)
        room[held_out] -= len(readable)
        yield ReadParagraph(paragraph.document, paragraph.index, paragraph.text, held_out, spans, readable, language)


Progress = Callable[[str, int, int | None], None]


def read(
    recipe: Recipe, folder: Path, teacher: Teacher, progress: Progress | None = None, corpus: Corpus | None = None
) -> Counter[str]:
    """Read the corpus into ``folder``; returns counts. An interrupted call goes on where it stopped.

    In memory are some thousands of sentences, the readings of a shard, and 24 bytes for each reading that is stored or
    known (with ``text.order`` shuffled the corpus as well). ``progress`` is told (what, done, of) now and then. Raises
    BrdError when a part has no sentence, and when too few answers are verified (``reading.floor``).
    """
    counts: Counter[str] = Counter()
    with Store(folder, recipe.reading.shard_rows) as store:
        counts["shards_mended"] = store.mended
        _save_paragraphs(recipe, folder, counts, progress, corpus)
        behaviors, identity = behaviors_of(recipe.reading), teacher_hash(teacher)
        known = Known(list(map(Path, recipe.reading.known)))
        (folder / "teacher.json").write_text(json.dumps({"hash": identity, **teacher.identity()}, indent=2) + "\n")
        judged_by = judges(behaviors)
        store.rejudge(
            lambda reading: _judged(reading, judged_by(reading), recipe),
            verifier_prints(behaviors, drop_bad_parts=recipe.reading.drop_bad_entities),
        )
        for name in (names := Names(recipe, behaviors, identity)):
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
    if len(known):
        # First of all, so that whatever happens while the teacher is asked these are there.
        for _, places in _missing(name, store):
            answers = known.answers(list(places))
            store.append(
                reading_of(key, *places[key], behavior, answers[key], name, recipe) for key in places if key in answers
            )
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


def check_parts(recipe: Recipe, counts: Counter[str]) -> None:
    seen = counts["documents_seen"]
    if not seen and counts["paragraphs_other_language"]:
        prefix = "paragraphs_other_language_"
        others = ", ".join(sorted(key.removeprefix(prefix) for key in counts if key.startswith(prefix))[:10])
        raise BrdError(
            f"reading.languages: no text in {', '.join(recipe.reading.languages or [])} (the corpus has {others}); "
            "text.language says what it is in, text.language_field and text.language_of where that differs"
        )
    if not counts["sentences_train"]:
        raise BrdError(
            f"text: no sentence to read ({seen} documents, text.held_out {recipe.text.held_out}); "
            f"sentences have {recipe.text.min_characters} to {recipe.text.max_characters} characters"
        )
    if not counts["sentences_held_out"]:
        raise BrdError(
            f"text: no document fell into the held-out part ({seen} documents, text.held_out {recipe.text.held_out}); "
            "raise text.held_out, or give more source texts (layout 'line': a blank line between documents)"
        )


_PARAGRAPHS = pa.schema(
    [
        ("document", pa.string()),
        ("paragraph", pa.int32()),
        ("text", pa.string()),
        ("held_out", pa.bool_()),
        ("starts", pa.list_(pa.int32())),
        ("ends", pa.list_(pa.int32())),
        ("readable", pa.list_(pa.int32())),
        ("language", pa.string()),
    ]
)


def _save_paragraphs(
    recipe: Recipe, folder: Path, counts: Counter[str], progress: Progress | None, corpus: Corpus | None
) -> None:
    chosen = choose(recipe, counts, corpus)
    with writer(folder / "paragraphs.parquet", _PARAGRAPHS) as into:
        while some := list(itertools.islice(chosen, GROUP)):
            columns = {
                "document": [p.document for p in some],
                "paragraph": [p.index for p in some],
                "text": [p.text for p in some],
                "held_out": [p.held_out for p in some],
                "starts": [[s.start for s in p.spans] for p in some],
                "ends": [[s.end for s in p.spans] for p in some],
                "readable": [p.readable for p in some],
                "language": [p.language for p in some],
            }
            into.write_table(pa.table(columns, schema=_PARAGRAPHS))
            if progress:
                progress("sentences", counts["sentences_train"] + counts["sentences_held_out"], None)
        check_parts(recipe, counts)


def load_paragraphs(folder: Path) -> list[ReadParagraph]:
    """The paragraphs that were chosen for reading, in the order of the corpus."""
    return list(iter_paragraphs(folder))


def iter_paragraphs(folder: Path) -> Iterator[ReadParagraph]:
    """The same, a few at a time in memory."""
    for table in read_pieces(folder / "paragraphs.parquet", 1024):
        # Files of earlier versions say nothing of languages.
        columns = [table[name].to_pylist() for name in _PARAGRAPHS.names if name in table.column_names]
        for document, index, text, held_out, starts, ends, readable, *language in zip(*columns, strict=True):
            spans = tuple(Span(a, b) for a, b in zip(starts, ends, strict=True))
            yield ReadParagraph(document, index, text, held_out, spans, tuple(readable), *language)


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
