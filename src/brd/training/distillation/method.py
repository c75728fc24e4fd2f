"""How an arm with an objective of distillation trains: its loss, and what its rows bring along."""

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from brd.errors import BrdError
from brd.recipe import Recipe
from brd.training.distillation.knowledge import KnowledgeDistillation
from brd.training.distillation.on_policy import GKD, Draws, MiniLLM
from brd.training.distillation.signals import About, about_signals, check_kept, signals_of
from brd.training.distillation.teacher import LaterTeacher, check_teacher, identity
from brd.training.objective import Method


def method_of(
    recipe: Recipe,
    tokens: Path,
    tokenizer: Any,
    signals: Path,
    progress: Callable[[str, int, int, str], None] | None = None,
) -> Method:
    """The method of an arm's ``recipe`` on its token file; ``signals`` is where the teacher's are kept.

    Raises BrdError as ``check_method``, and for a text or signals that are damaged.
    """
    settings, name = recipe.distillation, recipe.training.objective
    teacher = LaterTeacher(recipe, tokenizer)
    if name == "kd":
        found = signals_of(tokens, signals, about_kept(recipe, tokens, tokenizer), teacher, progress)
        return Method(partial(KnowledgeDistillation, settings.weight, settings.temperature), found.beside)
    check_method(recipe, tokenizer)
    prompt, new = settings.prompt_tokens, settings.new_tokens
    draws = Draws(recipe.seed, recipe.training.rows_per_step, settings.on_policy)
    if name == "gkd":
        return Method(partial(GKD, teacher, prompt, new, settings.beta), draws.beside)
    return Method(partial(MiniLLM, teacher, prompt, new, settings.teacher_share), draws.beside)


def about_kept(recipe: Recipe, tokens: Path, tokenizer: Any) -> About:
    """What the kept signals of ``kd`` rest on, for an arm's ``recipe`` on its token file."""
    by_document = recipe.training.attention == "document"
    return about_signals(tokens, identity(recipe), len(tokenizer), recipe.distillation, by_document)


def check_method(recipe: Recipe, tokenizer: Any) -> None:
    """BrdError, in a moment, where an arm's ``recipe`` cannot train by its objective here."""
    settings, name = recipe.distillation, recipe.training.objective
    if name == "kd":
        check_kept(About({}, "", 0, 0, len(tokenizer), settings.top, settings.drawn, settings.temperature))
    elif recipe.training.compile:
        raise BrdError(f"training.compile: not with {name}, whose answers grow token by token; set it to false for it")
    if name == "gkd" and importlib.util.find_spec("trl") is None:
        raise BrdError("gkd: its divergence is TRL's, which is not installed; pip install 'brd[distill]' installs it")
    check_teacher(recipe, tokenizer)
