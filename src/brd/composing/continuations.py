"""Sequence-level distillation (Kim & Rush 2016): the teacher goes on with beginnings of original text."""

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from brd.composing.packing import encode
from brd.reading.answers import Answers, Asked, Kind, completing
from brd.recipe import Recipe
from brd.teachers.teacher import Prompt

# For teachers that follow instructions; others go on with a text by themselves.
TASK = "Go on with the text. Write only what comes next, in the same style."
# Beginnings that the teacher gets at once: enough for a batch, and not many more than are needed.
FEWEST, MOST = 16, 4096


def continuations(
    recipe: Recipe, texts: Iterable[tuple[str, str]], answers: Answers, tokenizer: Any, tokens: int
) -> Iterator[list[int]]:
    """Token ids of a beginning with the teacher's continuation, for each of ``texts`` (place, paragraph) in turn.

    About ``tokens`` are wanted: so many texts are asked about at once as may still be needed.
    """
    kind, stream = kind_of(recipe), beginnings(recipe, texts, tokenizer)
    while some := list(islice(stream, at_once(recipe, tokens))):
        written = answers.of(kind, [asked for asked, _ in some])
        texts_now = [joined(begun, more) for (_, begun), more in zip(some, written, strict=True) if more.strip()]
        for ids in encode(texts_now, tokenizer):
            tokens -= len(ids)
            yield ids


def kind_of(recipe: Recipe) -> Kind:
    """The way in which the teacher is asked."""
    prefix = f"{TASK}\n\n" if recipe.teacher.chat_template else ""
    return completing("continuation", Prompt(prefix, ("\n\n",), recipe.distillation.new_tokens))


def beginnings(recipe: Recipe, texts: Iterable[tuple[str, str]], tokenizer: Any) -> Iterator[tuple[Asked, str]]:
    """What is asked about each of ``texts`` (place, paragraph) that has a beginning, with it."""
    for place, text in texts:
        if begun := beginning(text, recipe.distillation.prompt_tokens, tokenizer):
            # In a conversation what is given is one line.
            yield Asked(place, f"{' '.join(begun.split())}\n" if recipe.teacher.chat_template else begun), begun


def at_once(recipe: Recipe, tokens: float) -> int:
    """How many beginnings the teacher gets at once where so many tokens are wanted yet."""
    longest = recipe.distillation.prompt_tokens + recipe.distillation.new_tokens
    return min(MOST, max(FEWEST, math.ceil(tokens / longest)))


def beginning(text: str, most: int, tokenizer: Any) -> str:
    """The first half of a text, at most about ``most`` of the student's tokens of it, up to the end of a word; '' where
    there is no whole word."""
    length = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    share = min(0.5, most / max(1, length))
    return text[: max(0, text.rfind(" ", 0, int(len(text) * share) + 1))].rstrip()


def joined(begun: str, more: str) -> str:
    """A beginning and what was written behind it; a chat model may begin anew, and with a word instead of a space."""
    more = more.rstrip()
    said = more.lstrip().removeprefix(begun)
    if said != more.lstrip():
        return begun + said
    return begun + (" " if more[0].isalnum() and not begun[-1].isspace() else "") + more
