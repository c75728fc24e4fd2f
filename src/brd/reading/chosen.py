"""Which paragraphs of the corpus are read, and the file beside the readings that keeps them."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from brd.errors import BrdError
from brd.reading.languages import language_code
from brd.reading.parquet import read_pieces, writer
from brd.recipe import Recipe
from brd.sections.text import Text
from brd.text.corpus import Corpus
from brd.text.paragraph import Paragraph
from brd.text.sentences import Span, limit_broken, split

# Paragraphs that are written, and read, at once.
ROWS = 1024

Progress = Callable[[str, int, int | None], None]


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


def save_paragraphs(
    recipe: Recipe, folder: Path, counts: Counter[str], progress: Progress | None, corpus: Corpus | None
) -> None:
    with writer(folder / "paragraphs.parquet", _PARAGRAPHS) as into:
        for some in _some(choose(recipe, counts, corpus)):
            into.write_table(_table(some))
            if progress:
                progress("sentences", counts["sentences_train"] + counts["sentences_held_out"], None)
        check_parts(recipe, counts)


def write_paragraphs(folder: Path, chosen: Iterable[ReadParagraph], counts: Counter[str]) -> None:
    """Keep paragraphs of the training part that were chosen elsewhere, as those of the corpus are."""
    with writer(folder / "paragraphs.parquet", _PARAGRAPHS) as into:
        for some in _some(chosen):
            into.write_table(_table(some))
            for p in some:
                counts["sentences_train"] += len(p.readable)
                counts[f"sentences_train_{p.language}"] += len(p.readable)


def _some(chosen: Iterable[ReadParagraph]) -> Iterator[list[ReadParagraph]]:
    stream = iter(chosen)
    while some := list(itertools.islice(stream, ROWS)):
        yield some


def _table(some: list[ReadParagraph]) -> pa.Table:
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
    return pa.table(columns, schema=_PARAGRAPHS)


def load_paragraphs(folder: Path) -> list[ReadParagraph]:
    """The paragraphs that were chosen for reading, in the order of the corpus."""
    return list(iter_paragraphs(folder))


def iter_paragraphs(folder: Path) -> Iterator[ReadParagraph]:
    """The same, a few at a time in memory."""
    for table in read_pieces(folder / "paragraphs.parquet", ROWS):
        # Files of earlier versions say nothing of languages.
        columns = [table[name].to_pylist() for name in _PARAGRAPHS.names if name in table.column_names]
        for document, index, text, held_out, starts, ends, readable, *language in zip(*columns, strict=True):
            spans = tuple(Span(a, b) for a, b in zip(starts, ends, strict=True))
            yield ReadParagraph(document, index, text, held_out, spans, tuple(readable), *language)
