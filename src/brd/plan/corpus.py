"""What a run will read: its sentences counted where that is cheap, else estimated from pieces of the corpus.

Either way they come out of ``reading.chosen.choose``, so that whatever it leaves out is left out here.
"""

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from heapq import nsmallest
from pathlib import Path
from typing import Protocol, TypeVar

from brd.errors import BrdError
from brd.plan.pieces import Piece, cut, is_packed
from brd.reading.chosen import ReadParagraph, check_parts, choose, part_of
from brd.reading.tally import text_hash
from brd.recipe import Recipe, changed
from brd.recipe_corpus import open_corpus
from brd.text.sources import file_language, places

# Text that is gone through sentence by sentence, in bytes; a run that reads more of its corpus is estimated.
EXACT = 32 * 2**20
# Of a larger corpus: so many pieces, each of so many bytes.
PIECES = 64
PIECE = 64 * 2**10
# Sentences and paragraphs that are kept as a sample of all.
POOL = 4096
PARAGRAPHS = 256
# Of a dataset of the Hub, whose length nobody knows beforehand: sentences that are streamed to be counted.
STREAMED = 20_000
_UNPACKED = 4.0

PARTS = ("train", "held_out")


class Weighed(Protocol):
    """What may be asked, and how many of the run's are like it."""

    @property
    def text(self) -> str: ...
    @property
    def weight(self) -> float: ...


C = TypeVar("C", bound=Weighed)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sentence that may be asked. ``weight`` sentences of the run are like it."""

    paragraph: ReadParagraph
    number: int
    weight: float

    @property
    def text(self) -> str:
        return self.paragraph.sentence(self.number)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Counts are of the run's sentences, by part. ``distinct`` ones of both parts are asked, each once.

    ``error`` is the standard error of the counts as a share of them (0: counted). ``characters`` are those of the
    training paragraphs. ``seen`` are all distinct sentences where they were counted, else as ``pool``: a sample of
    them. ``paragraphs`` are a sample of the training paragraphs; ``train`` are all, where they were counted.
    ``seconds`` is what the run takes to go through its corpus. ``how`` says what was looked at.
    """

    exact: bool
    how: str
    sentences: dict[str, float]
    distinct: float
    characters: float
    broken: dict[str, float]
    error: float
    seconds: float
    seen: list[Candidate]
    pool: list[Candidate]
    paragraphs: list[ReadParagraph]
    train: list[ReadParagraph] | None

    @property
    def languages(self) -> dict[str, float]:
        """Distinct sentences by language."""
        found: dict[str, float] = {}
        for candidate in self.seen:
            code = candidate.paragraph.language
            found[code] = found.get(code, 0.0) + candidate.weight
        return found


def look(recipe: Recipe, progress: Callable[[int], None]) -> Corpus:
    """Look at the corpus of a recipe.

    Raises BrdError for a corpus that cannot be read, or a part without a sentence.
    """
    files = [path for _, path, _ in places(recipe.text)]
    if None in files:
        train = max(1e-9, 1 - recipe.text.held_out - recipe.text.healing)
        shares = (train, recipe.text.held_out)
        wanted = max(count / share for count, share in zip(_wanted(recipe), shares, strict=True))
        exact = recipe.text.order == "corpus" and wanted <= STREAMED
        return _exact(recipe, progress) if exact else _estimate(recipe)[0]
    unpacked = sum(p.stat().st_size * (_UNPACKED if is_packed(p) else 1) for p in files if p)
    if unpacked <= EXACT:
        return _exact(recipe, progress)
    found, gone_through = _estimate(recipe)
    return _exact(recipe, progress) if gone_through <= EXACT else found


def _exact(recipe: Recipe, progress: Callable[[int], None]) -> Corpus:
    began, counts = time.perf_counter(), Counter[str]()
    seen: dict[int, Candidate] = {}
    train: list[ReadParagraph] = []
    for paragraph in choose(recipe, counts, open_corpus(recipe)):
        if not paragraph.held_out:
            train.append(paragraph)
        for number in paragraph.readable:
            seen.setdefault(_question(recipe, paragraph, number), Candidate(paragraph, number, 1.0))
        if counts["paragraphs_train"] % 256 == 0:
            progress(len(seen))
    check_parts(recipe, counts)
    return Corpus(
        exact=True,
        how="counted",
        sentences={part: float(counts[f"sentences_{part}"]) for part in PARTS},
        distinct=float(len(seen)),
        characters=float(sum(len(p.text) for p in train)),
        broken={why: float(counts[f"sentences_too_{why}"]) for why in ("short", "long")},
        error=0.0,
        seconds=time.perf_counter() - began,
        seen=list(seen.values()),
        pool=[replace(seen[mark], weight=len(seen) / min(POOL, len(seen))) for mark in nsmallest(POOL, seen)],
        paragraphs=_sample(train),
        train=train,
    )


def _sample(paragraphs: Iterable[ReadParagraph]) -> list[ReadParagraph]:
    return nsmallest(PARAGRAPHS, paragraphs, key=lambda paragraph: text_hash(paragraph.text))


def _question(recipe: Recipe, paragraph: ReadParagraph, number: int) -> int:
    """What is asked once, as a hash: a sentence, in each language where these are told apart."""
    text = paragraph.sentence(number)
    return text_hash(f"{paragraph.language}\0{text}" if recipe.reading.languages else text)


@dataclass(slots=True)
class _Seen:
    """What a piece holds. ``train`` and ``held_out`` are sentences of the run that it stands for."""

    piece: Piece
    paragraphs: list[ReadParagraph]
    sentences: int = 0
    train: float = 0.0
    held_out: float = 0.0


def _estimate(recipe: Recipe) -> tuple[Corpus, float]:
    """The corpus as its pieces tell, and how many bytes of text the run will go through."""
    with tempfile.TemporaryDirectory(prefix="brd-plan-") as name:
        pieces = cut(recipe.text, Path(name), PIECES, PIECE)
        began, counts = time.perf_counter(), Counter[str]()
        seen = _read_pieces(recipe, Path(name), pieces, counts)
        rate = (time.perf_counter() - began) / max(1, sum(piece.size for piece in pieces))
    gone_through = _fill(recipe, seen)
    if not any(s.train for s in seen) or not any(s.held_out for s in seen):
        check_parts(recipe, counts + Counter({"sentences_train": sum(s.sentences for s in seen)}))
    sentences = {"train": sum(s.train for s in seen), "held_out": sum(s.held_out for s in seen)}
    found: dict[int, Candidate] = {}
    train: list[ReadParagraph] = []
    characters = 0.0
    for one in seen:
        if not one.train + one.held_out:
            continue
        each = (one.train + one.held_out) / one.sentences
        for paragraph in one.paragraphs:
            if one.train:
                characters += len(paragraph.text) * one.train / one.sentences
                train.append(paragraph)
            for number in paragraph.readable:
                mark = _question(recipe, paragraph, number)
                before = found.get(mark) or Candidate(paragraph, number, 0.0)
                found[mark] = replace(before, weight=before.weight + each)
    # Sentences that stand in several pieces are told apart there only, so rather too many are taken for different.
    distinct = sum(sentences.values()) * len(found) / max(1, sum(s.sentences for s in seen if s.train + s.held_out))
    pool = [found[mark] for mark in nsmallest(POOL, found)]
    scale = distinct / sum(c.weight for c in pool)
    pool = [replace(c, weight=c.weight * scale) for c in pool]
    known = [s for s in seen if s.piece.weight is not None]
    bound = {p: s >= w * (1 - 1e-9) for (p, s), w in zip(sentences.items(), _wanted(recipe), strict=True)}
    factor = sum(s.piece.weight or 0.0 for s in known) / max(1e-9, sum(s.piece.held for s in known))
    looked = sum(piece.size for piece in pieces) / 2**20
    how = f"estimated from {len(pieces)} pieces, {looked:.1f} MB"
    if len(known) < len(seen):
        how += "; how much a dataset of the Hub holds is not known, and taken to be enough"
    corpus = Corpus(
        exact=False,
        how=how,
        sentences=sentences,
        distinct=distinct,
        characters=characters,
        broken={why: counts[f"sentences_too_{why}"] * factor for why in ("short", "long")},
        error=0.0 if all(bound.values()) else _spread(known),
        seconds=gone_through * rate,
        seen=pool,
        pool=pool,
        paragraphs=_sample(train),
        train=None,
    )
    return corpus, gone_through


def _read_pieces(recipe: Recipe, folder: Path, pieces: list[Piece], counts: Counter[str]) -> list[_Seen]:
    """The paragraphs of each piece. All of them: which part a document belongs to is not asked here, since documents
    are numbered from the beginning of their file."""
    everything = {
        "text.source": [str(folder)],
        # The pieces have names of their own, and documents that begin anew.
        "text.language_of": {
            f"{number:05d}.*": code
            for number, piece in enumerate(pieces)
            if (code := file_language(recipe.text, piece.place))
        },
        "text.id_field": None,
        "text.order": "corpus",
        "text.held_out": 1e-12,
        "text.healing": 0.0,
        # A bad byte stops the run, and is no reason to tell nothing before.
        "text.encoding_errors": "replace",
        "reading.sentences": 10**12,
        "reading.held_out_sentences": 10**12,
    }
    seen = [_Seen(piece, []) for piece in pieces]
    try:
        whole = changed(recipe, everything)
        for paragraph in choose(whole, counts, open_corpus(whole)):
            number = int(paragraph.document[:5])
            piece, rest = pieces[number], paragraph.document.partition("#")[2]
            document = piece.place if piece.one_document else f"{piece.place}@{piece.offset}#{rest or 0}"
            seen[number].paragraphs.append(replace(paragraph, document=document))
            seen[number].sentences += len(paragraph.readable)
    except BrdError as error:
        raise BrdError(_named(str(error), folder, pieces)) from None
    return seen


def _named(message: str, folder: Path, pieces: list[Piece]) -> str:
    """An error that names a piece, with the file that it was cut from."""
    before, here, rest = message.partition(f"{folder}/")
    if not here or not rest[:5].isdigit():
        return message
    piece = pieces[int(rest[:5])]
    line = rest.partition(":")[2]
    return f"{before}{piece.place}: (in the part that begins at byte {piece.offset}, line {line}"


def _wanted(recipe: Recipe) -> tuple[int, int]:
    return recipe.reading.sentences, recipe.reading.held_out_sentences


def _fill(recipe: Recipe, seen: list[_Seen]) -> float:
    """How many sentences of each part the run takes of what each piece stands for; returns the bytes of text that it
    goes through until both parts are full."""
    text, gone_through = recipe.text, 0.0
    shares = {"held_out": text.held_out, "train": 1 - text.held_out - text.healing}
    room = dict(zip(PARTS, map(float, _wanted(recipe)), strict=True))
    stock: list[dict[str, float]] = []
    for one in seen:
        piece = one.piece
        if piece.weight is None:
            count = math.inf if one.sentences else 0.0
        else:
            count = one.sentences * piece.weight / piece.held if piece.held else 0.0
        if piece.one_document:
            whole = part_of(piece.place, text)
            stock.append({p: count if p == whole else 0.0 for p in PARTS})
        else:
            stock.append({p: count * shares[p] for p in PARTS})
    totals = {p: sum(s[p] for s in stock) for p in PARTS}
    for one, has in zip(seen, stock, strict=True):
        full = max(room.values()) <= 0
        for part in PARTS:
            if text.order == "shuffled" and math.isfinite(totals[part]):
                taken = has[part] * min(1.0, _wanted(recipe)[PARTS.index(part)] / max(totals[part], 1e-9))
            else:
                taken = min(max(room[part], 0.0), has[part])
            room[part] -= taken
            setattr(one, part, taken)
        if not full or text.order == "shuffled":
            piece = one.piece
            gone_through += piece.size * (piece.weight / piece.held if piece.weight and piece.held else 1.0)
    return gone_through


def _spread(seen: Iterable[_Seen]) -> float:
    """The standard error of the sentences a byte, from piece to piece, as a share."""
    rates = [s.sentences / s.piece.held for s in seen if s.piece.held]
    if len(rates) < 2:
        return 0.0
    mean = sum(rates) / len(rates)
    variance = sum((rate - mean) ** 2 for rate in rates) / (len(rates) - 1)
    return math.sqrt(variance / len(rates)) / mean if mean else 0.0


def pick(pool: Iterable[C], most: int) -> list[C]:
    """A sample of a pool with one sentence of each length class (classes of equal weight), drawn by hash; in an order
    of their hashes, but for the longest one, which comes first."""
    by_length = sorted(pool, key=lambda c: (len(c.text), text_hash(c.text)))
    total = sum(c.weight for c in by_length)
    most = min(most, len(by_length))
    best: dict[int, tuple[float, C]] = {}
    before = 0.0
    for candidate in by_length:
        middle = before + candidate.weight / 2
        before += candidate.weight
        where = min(most - 1, int(middle / total * most))
        luck = -math.log((text_hash("pick\0" + candidate.text) + 1) / 2**64) / candidate.weight
        if where not in best or luck < best[where][0]:
            best[where] = (luck, candidate)
    drawn = [c for _, c in best.values()]
    longest = max(drawn, key=lambda c: len(c.text), default=None)
    drawn.sort(key=lambda c: (c is not longest, text_hash("order\0" + c.text)))
    return drawn


def mean_length(pool: Iterable[Weighed]) -> float:
    """Characters of a sentence."""
    found = list(pool)
    return sum(c.weight * len(c.text) for c in found) / max(1e-9, sum(c.weight for c in found))
