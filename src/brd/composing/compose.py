"""The composing step: one token file for each trained arm, all with the same number of trained tokens."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from brd.composing.documents import check_separator, lessons
from brd.composing.packing import encode, pack
from brd.experiment import ARMS
from brd.reading.reader import Readings, is_held_out
from brd.recipe import Recipe
from brd.text.sources import paragraphs


def steps_for(rows: int, recipe: Recipe) -> int:
    """Optimizer steps of every arm: the epochs of the reference lessons, in whole steps (at least one)."""
    return max(1, round(recipe.training.epochs * rows / recipe.training.rows_per_step))


def compose_lessons(recipe: Recipe, readings: Readings, tokenizer: Any, folder: Path) -> dict[str, Any]:
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

    about = {"lessons": parts}
    meta = pack(
        encode(texts(), tokenizer),
        folder,
        row_tokens=recipe.composing.row_tokens,
        vocabulary=len(tokenizer),
        about=about,
    )
    return {**meta, "readings": answers}


def compose_original(recipe: Recipe, readings: Readings, tokenizer: Any, folder: Path, rows: int) -> dict[str, Any]:
    """The token file of FURTHER: ``rows`` rows of original text of the same sources, as many as the other arms train.

    Fresh paragraphs come first; where they are scarce those that were read follow, and then all of it again.
    """
    read = {(p.document, p.index) for p in readings.paragraphs}
    fresh = 0

    def texts() -> Iterator[str]:
        nonlocal fresh
        for paragraph in paragraphs(recipe.text):
            held_out = is_held_out(paragraph.document, recipe.text.held_out)
            if not held_out and (paragraph.document, paragraph.index) not in read:
                fresh += 1
                yield paragraph.text
        for chosen in readings.paragraphs:
            if not chosen.held_out:
                yield chosen.text

    meta = pack(
        encode(texts(), tokenizer),
        folder,
        row_tokens=recipe.composing.row_tokens,
        vocabulary=len(tokenizer),
        rows=rows,
    )
    return {**meta, "fresh_paragraphs": fresh}


def compose(recipe: Recipe, arm: str, readings: Readings, tokenizer: Any, folder: Path, rows: int) -> dict[str, Any]:
    """Compose one arm's token file (``rows``: what FURTHER must fill)."""
    if ARMS[arm].data == "original":
        return compose_original(recipe, readings, tokenizer, folder, rows)
    return compose_lessons(recipe, readings, tokenizer, folder)
