"""The composing step: one token file for each trained arm, all with the same number of trained tokens."""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brd.composing.continuations import continuations
from brd.composing.documents import check_separator, lessons, taught
from brd.composing.packing import Packing, encode, pack, tokenizer_mark
from brd.composing.relaxed import mixed
from brd.composing.task_answers import Choose, answered, labelled
from brd.errors import BrdError
from brd.experiment import TASK_DATA, Data
from brd.reading.answers import Answers
from brd.reading.chosen import in_languages, part_of
from brd.reading.reader import Readings
from brd.reading.task_inputs import TaskInput
from brd.recipe import Recipe, changed
from brd.sections.task_data import Part
from brd.text.corpus import Corpus

# Rows of held-out text that the loss is watched on while the student is healed, and that layers are measured on.
WATCHED_ROWS = 32


@dataclass(frozen=True, slots=True)
class More:
    """What composing takes where the teacher is asked for more than readings, or tasks are learnt.

    ``choose`` is None for a teacher that gives text only. ``counts`` is told by ``inputs`` and by what they become.
    """

    answers: Answers
    counts: Counter[str]
    inputs: Callable[[], list[TaskInput]]
    choose: Choose | None
    read: Callable[[list[TaskInput]], Readings]


def steps_for(rows: int, recipe: Recipe) -> int:
    """Optimizer steps of every arm: the epochs of the reference lessons, in whole steps (at least one)."""
    return max(1, round(recipe.training.epochs * rows / recipe.training.rows_per_step))


def compose_lessons(
    recipe: Recipe, readings: Readings, tokenizer: Any, folder: Path, fill: float = 1.0
) -> dict[str, Any]:
    """The token file of an arm that learns from readings; ``recipe`` is that arm's."""
    check_separator(recipe, readings)
    parts: dict[str, int] = {}
    answers = 0

    def texts() -> Iterator[str]:
        nonlocal answers
        for lesson in lessons(recipe, readings):
            parts[lesson.part] = parts.get(lesson.part, 0) + 1
            answers += len(lesson.answers)
            yield lesson.text

    meta = _pack_text(recipe, texts(), tokenizer, folder, None, fill=fill, about={"lessons": parts})
    return {**meta, "readings": answers}


def compose_original(
    recipe: Recipe,
    readings: Readings,
    tokenizer: Any,
    folder: Path,
    rows: int,
    corpus: Corpus | None = None,
    fill: float = 1.0,
) -> dict[str, Any]:
    """The token file of FURTHER: ``rows`` rows of original text of the same sources, as many as the other arms train.

    Fresh paragraphs come first; where they are scarce those that were read follow, and then all of it again.
    """
    fresh: Counter[str] = Counter()
    texts = (text for _, text in original_texts(recipe, readings, corpus, fresh))
    meta = _pack_text(recipe, texts, tokenizer, folder, rows, fill=fill)
    return {**meta, "fresh_paragraphs": fresh["paragraphs"]}


def original_texts(
    recipe: Recipe, readings: Readings, corpus: Corpus | None, fresh: Counter[str]
) -> Iterator[tuple[str, str]]:
    """Paragraphs with their places: fresh ones, which are counted, then those that were read."""
    read = {(p.document, p.index) for p in readings.paragraphs}
    for paragraph, _ in in_languages(recipe, corpus):
        train = part_of(paragraph.document, recipe.text) == "train"
        if train and (paragraph.document, paragraph.index) not in read:
            fresh["paragraphs"] += 1
            yield paragraph.document, paragraph.text
    yield from ((paragraph.document, paragraph.text) for paragraph in taught(recipe, readings))


def compose_same(
    recipe: Recipe, readings: Readings, tokenizer: Any, folder: Path, rows: int, fill: float = 1.0
) -> dict[str, Any]:
    """The token file of the control that sees the paragraphs that were read as often as it takes, without readings."""
    return _pack_text(recipe, _read_texts(recipe, readings), tokenizer, folder, rows, fill=fill)


def compose_continuations(
    recipe: Recipe,
    readings: Readings,
    tokenizer: Any,
    folder: Path,
    rows: int,
    corpus: Corpus | None,
    more: More,
    fill: float = 1.0,
) -> dict[str, Any]:
    """The token file of sequence-level distillation: beginnings of the text of ``compose_original``, with what the
    teacher wrote behind them."""
    fresh: Counter[str] = Counter()
    texts = original_texts(recipe, readings, corpus, fresh)
    wanted = rows * recipe.composing.row_tokens
    meta = _pack(recipe, continuations(recipe, texts, more.answers, tokenizer, wanted), tokenizer, folder, rows, fill)
    return {**meta, "fresh_paragraphs": fresh["paragraphs"], "answers": dict(more.answers.counts)}


def compose_tasks(
    recipe: Recipe,
    data: Data,
    readings: Readings,
    tokenizer: Any,
    folder: Path,
    rows: int,
    more: More,
    fill: float = 1.0,
) -> dict[str, Any]:
    """The token file of an arm that learns from task inputs: with labels, with the teacher's answers, or with these
    beside lessons on generic text and on the inputs."""
    inputs = more.inputs()
    texts = labelled(inputs) if data == "labels" else answered(inputs, more.answers, more.choose, more.counts)
    if not texts:
        raise BrdError(
            f"{folder.name}: none of the teacher's answers to {len(inputs)} task inputs names a candidate; a teacher "
            f"of kind shared_prefix is asked for probabilities instead"
        )
    taken: Counter[str] = Counter()
    if data == "relaxed":
        on_inputs = more.read(inputs)
        # The limit is on what was read of the corpus.
        own = changed(recipe, {"composing.sentences": None})
        parts: dict[Part, Sequence[str]] = {
            "lessons": [lesson.text for lesson in lessons(recipe, readings)],
            "answers": texts,
            "inputs": [lesson.text for lesson in lessons(own, on_inputs)],
        }
        stream = mixed(recipe, parts, tokenizer, taken)
    else:
        random.Random(f"task data {recipe.seed}").shuffle(texts)
        stream = encode(texts, tokenizer)
        taken["inputs"] = len(texts)
    meta = _pack(recipe, stream, tokenizer, folder, rows, fill)
    return {**meta, "task_data": dict(more.counts), "taken": dict(taken), "answers": dict(more.answers.counts)}


def _read_texts(recipe: Recipe, readings: Readings) -> Iterator[str]:
    return (paragraph.text for paragraph in taught(recipe, readings))


def _pack_text(
    recipe: Recipe, texts: Iterable[str], tokenizer: Any, folder: Path, rows: int | None, **how: Any
) -> dict[str, Any]:
    return _pack(recipe, encode(texts, tokenizer), tokenizer, folder, rows, **how)


def _pack(
    recipe: Recipe,
    documents: Iterable[list[int]],
    tokenizer: Any,
    folder: Path,
    rows: int | None,
    fill: float = 1.0,
    about: dict[str, Any] | None = None,
    packing: Packing | None = None,
) -> dict[str, Any]:
    return pack(
        documents,
        folder,
        row_tokens=recipe.composing.row_tokens,
        vocabulary=len(tokenizer),
        packing=packing or recipe.composing.packing,
        rows=rows,
        fill=fill,
        about={**(about or {}), "tokenizer": tokenizer_mark(tokenizer)},
    )


def compose_healing(recipe: Recipe, tokenizer: Any, folder: Path, corpus: Corpus | None = None) -> dict[str, Any]:
    """Token files for healing: ``heating`` (the constant rate) and ``cooling`` of the corpus' healing part, ``watched``
    of its held-out part. Always packed as a stream, whose tokens are those that were asked for.

    Raises BrdError when that part has too little text to fill both without a repetition.
    """
    assert recipe.healing is not None
    settings, row = recipe.healing, recipe.composing.row_tokens
    corpus = corpus or Corpus(recipe.text)
    texts = (p.text for p in corpus if part_of(p.document, recipe.text) == "healing")
    stream = encode(texts, tokenizer)
    found: dict[str, Any] = {}
    for name, tokens in (("heating", settings.most_tokens), ("cooling", settings.cooling_tokens)):
        rows = max(1, tokens // row)
        first = next(stream, None)
        meta = {"unique_tokens": 0, "tokens": 1}
        if first is not None:
            rest = itertools.chain([first], stream)
            about = {"tokenizer": tokenizer_mark(tokenizer)}
            meta = pack(rest, folder / name, row_tokens=row, vocabulary=len(tokenizer), rows=rows, about=about)
        if meta["unique_tokens"] < meta["tokens"]:
            raise BrdError(
                f"text.healing: the healing part of the corpus ({recipe.text.healing:g} of its documents) has less "
                f"text than healing.most_tokens and healing.cooling_tokens ask for ({settings.most_tokens} + "
                f"{settings.cooling_tokens} tokens); raise the share or lower the tokens"
            )
        found[name] = meta["tokens"]
    found["watched"] = compose_held_out(recipe, held_out_texts(recipe, corpus), tokenizer, folder / "watched")["tokens"]
    return found


def compose_held_out(recipe: Recipe, texts: Iterable[str], tokenizer: Any, folder: Path) -> dict[str, Any]:
    """A token file of ``WATCHED_ROWS`` rows of held-out original text, which no arm trains on."""
    return _pack_text(recipe, texts, tokenizer, folder, WATCHED_ROWS, packing="stream")


def held_out_texts(recipe: Recipe, corpus: Corpus) -> Iterator[str]:
    """The paragraphs of the corpus' held-out part."""
    return (p.text for p in corpus if part_of(p.document, recipe.text) == "held_out")


def compose(
    recipe: Recipe,
    data: Data,
    readings: Readings,
    tokenizer: Any,
    folder: Path,
    rows: int,
    corpus: Corpus | None = None,
    fill: float = 1.0,
    more: More | None = None,
) -> dict[str, Any]:
    """Compose one arm's token file. ``rows``: what every arm but those of lessons must fill; ``fill``: the share of a
    row that the reference arm's documents take up on average, which is the most that this arm's may."""
    if data == "continuations":
        assert more is not None
        return compose_continuations(recipe, readings, tokenizer, folder, rows, corpus, more, fill)
    if data in TASK_DATA:
        assert more is not None
        return compose_tasks(recipe, data, readings, tokenizer, folder, rows, more, fill)
    if data == "original":
        return compose_original(recipe, readings, tokenizer, folder, rows, corpus, fill)
    if data == "same":
        return compose_same(recipe, readings, tokenizer, folder, rows, fill)
    return compose_lessons(recipe, readings, tokenizer, folder, fill)
