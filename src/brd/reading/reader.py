"""The reading loop: choose the sentences, ask the teacher for what is not yet known, judge, store."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from brd.errors import BrdError
from brd.reading.behavior import Behavior, behaviors_of, prompt_hash
from brd.reading.floor import Floor
from brd.reading.keys import Keys, judges
from brd.reading.languages import language_code
from brd.reading.store import (
    Reading,
    Store,
    load,
    load_answers,
    read_pieces,
    reading_key,
    with_judgement,
    write_table,
)
from brd.recipe import Recipe
from brd.sections.text import Text
from brd.teachers.teacher import Answer, Teacher
from brd.text.sentences import Span, limit_broken, split
from brd.text.sources import Paragraph, paragraphs

# Sentences that are handed to the teacher at once: bounds memory, and is large against a batch.
WINDOW = 8192


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


def in_languages(recipe: Recipe, counts: Counter[str] | None = None) -> Iterator[tuple[Paragraph, str]]:
    """The paragraphs of the corpus in the languages that are read (all of them where the recipe names none), each with
    its own; ``counts`` is told of those in other languages."""
    wanted = recipe.reading.languages
    for paragraph in paragraphs(recipe.text):
        code = language_of(paragraph, recipe.text)
        if wanted is None or code in wanted:
            yield paragraph, code
        elif counts is not None:
            counts["paragraphs_other_language"] += 1
            # A field may hold anything; its first hundred different values tell what is wrong.
            if (key := f"paragraphs_other_language_{code}") in counts or len(counts) < 100:
                counts[key] += 1


def choose(recipe: Recipe, counts: Counter[str]) -> Iterator[ReadParagraph]:
    """Whole paragraphs of the corpus, in order, until both parts have their number of sentences.

    ``counts`` is told of documents, paragraphs, sentences of each part and of sentences beyond the length limits.
    """
    settings, wanted = recipe.text, recipe.reading
    room = {False: wanted.sentences, True: wanted.held_out_sentences}
    documents: set[str] = set()
    for paragraph, language in in_languages(recipe, counts):
        if paragraph.document not in documents:
            counts["documents_seen"] += 1
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


def read(
    recipe: Recipe, folder: Path, teacher: Teacher, progress: Callable[[str, int, int], None] | None = None
) -> Counter[str]:
    """Read the corpus into ``folder``; returns counts. An interrupted call goes on where it stopped.

    ``progress`` is told (behavior, done, of) now and then. Raises BrdError when a part has no sentence, and when too
    few answers are verified (``reading.floor``).
    """
    counts: Counter[str] = Counter()
    with Store(folder, recipe.reading.shard_rows) as store:
        chosen = list(choose(recipe, counts))
        check_parts(recipe, counts)
        _save_paragraphs(folder, chosen)
        behaviors = behaviors_of(recipe.reading)
        identity = teacher_hash(teacher)
        known = load_answers(map(Path, recipe.reading.known))
        (folder / "teacher.json").write_text(json.dumps({"hash": identity, **teacher.identity()}, indent=2) + "\n")
        for name in behaviors:
            # The sentences of one language together: they share their prompt.
            for language, behavior in behaviors.each(name).items():
                mine = [p for p in chosen if p.language == language] if language else chosen
                _read_behavior(recipe, behavior, teacher, identity, known, mine, store, counts, progress)
        judged_by = judges(behaviors)

        def judge(reading: Reading) -> Reading:
            behavior = judged_by(reading)
            return reading if behavior is None else _judged(reading, behavior, recipe)

        store.rejudge(judge)
    return counts


def _read_behavior(
    recipe: Recipe,
    behavior: Behavior,
    teacher: Teacher,
    identity: str,
    known: dict[str, Answer],
    chosen: list[ReadParagraph],
    store: Store,
    counts: Counter[str],
    progress: Callable[[str, int, int], None] | None,
) -> None:
    prompt, limit = prompt_hash(behavior), min(behavior.max_new_tokens, recipe.teacher.max_new_tokens)
    places: dict[str, tuple[ReadParagraph, int]] = {}
    total = 0
    for paragraph in chosen:
        for number in paragraph.readable:
            total += 1
            key = reading_key(identity, prompt, limit, paragraph.sentence(number))
            if key not in store:
                places.setdefault(key, (paragraph, number))
    if paid := [key for key in places if key in known]:
        store.append(_reading(key, *places.pop(key), behavior, known[key], identity, prompt, recipe) for key in paid)
    floor = _floor(recipe, behavior, (identity, prompt, limit), store)
    counts[f"{behavior.name}_known_before"] += total - len(places)
    done = total - len(places)
    pending = iter(places.items())
    while window := list(itertools.islice(pending, WINDOW)):
        suffixes = [behavior.suffix(paragraph.sentence(number)) for _, (paragraph, number) in window]
        for index, answer in teacher.answer(behavior.prefix, suffixes, stop=behavior.stop, max_new_tokens=limit):
            key, (paragraph, number) = window[index]
            reading = _reading(key, paragraph, number, behavior, answer, identity, prompt, recipe)
            store.append([reading])
            floor.saw(reading)
            done += 1
            counts[f"{behavior.name}_asked"] += 1
            counts["prompt_tokens"] += answer.prompt_tokens
            counts["new_tokens"] += answer.new_tokens
            counts["cached_tokens"] += answer.cached_tokens
            counts["retries"] += answer.retries
            if progress:
                progress(behavior.name, done, total)


def _floor(recipe: Recipe, behavior: Behavior, name: tuple[str, str, int], store: Store) -> Floor:
    """The alarm of a behavior, which knows its last answers to this prompt from earlier calls, judged anew."""
    settings = recipe.reading
    if settings.floor is None:
        return Floor(settings, behavior.name, store.folder.parent)

    def wanted(reading: Reading) -> bool:
        return reading.behavior == behavior.name and reading.key == reading_key(*name, reading.text)

    before = (_judged(reading, behavior, recipe) for reading in store.last(wanted, settings.floor_window))
    return Floor(settings, behavior.name, store.folder.parent, before)


def _judged(reading: Reading, behavior: Behavior, recipe: Recipe) -> Reading:
    drop = recipe.reading.drop_bad_entities
    return with_judgement(
        reading, behavior.judge(reading.raw, reading.text, finished=reading.finished, drop_bad_parts=drop)
    )


def _reading(
    key: str,
    paragraph: ReadParagraph,
    number: int,
    behavior: Behavior,
    answer: Answer,
    identity: str,
    prompt: str,
    recipe: Recipe,
) -> Reading:
    span = paragraph.spans[number]
    blank = Reading(
        key=key,
        document=paragraph.document,
        paragraph=paragraph.index,
        sentence=number,
        start=span.start,
        end=span.end,
        text=paragraph.sentence(number),
        behavior=behavior.name,
        raw=answer.text,
        finished=answer.finished,
        content=None,
        verdict="malformed",
        reason="",
        parts=0,
        parts_verified=0,
        teacher=identity,
        prompt_hash=prompt,
        prompt_tokens=answer.prompt_tokens,
        new_tokens=answer.new_tokens,
    )
    return _judged(blank, behavior, recipe)


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


def _save_paragraphs(folder: Path, chosen: list[ReadParagraph]) -> None:
    columns = {
        "document": [p.document for p in chosen],
        "paragraph": [p.index for p in chosen],
        "text": [p.text for p in chosen],
        "held_out": [p.held_out for p in chosen],
        "starts": [[s.start for s in p.spans] for p in chosen],
        "ends": [[s.end for s in p.spans] for p in chosen],
        "readable": [list(p.readable) for p in chosen],
        "language": [p.language for p in chosen],
    }
    write_table(pa.table(columns, schema=_PARAGRAPHS), folder / "paragraphs.parquet")


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


class Readings:
    """The readings that a recipe wants, looked up by behavior and sentence text."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.paragraphs = load_paragraphs(folder)
        self.behaviors = behaviors_of(recipe.reading)
        self._keys = Keys(recipe, folder, self.behaviors)
        keys = (
            self._keys.of(name, p.language, p.sentence(n))
            for p in self.paragraphs
            for n in p.readable
            for name in self.behaviors
        )
        self._found = load(folder, keys)

    def get(self, behavior: str, sentence: str, language: str = "") -> Reading | None:
        """The reading of a sentence; ``language`` (a code) where the recipe names those that are read."""
        return self._found.get(self._keys.of(behavior, language, sentence))

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


def funnel(readings: Readings) -> dict[str, Any]:
    """How many readings were asked for, well formed and verified, by behavior, and why the others were not."""
    found: dict[str, Any] = {}
    for name, behavior in readings.behaviors.items():
        counts: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        every = [r for part in (False, True) for _, _, r in readings.all(part) if r.behavior == name]
        for reading in every:
            counts[reading.verdict] += 1
            counts["parts"] += reading.parts
            counts["parts_verified"] += reading.parts_verified
            if reading.verdict == "verified":
                counts["empty"] += behavior.is_empty(reading.parsed() or {})
            else:
                reasons[reading.reason] += 1
        found[name] = {
            "asked": len(every),
            "well_formed": len(every) - counts["malformed"],
            "verified": counts["verified"],
            "rejected": counts["rejected"],
            "empty": counts["empty"],
            "parts": counts["parts"],
            "parts_verified": counts["parts_verified"],
            "reasons": dict(reasons.most_common()),
        }
    return found
