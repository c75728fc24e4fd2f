"""Healing: the student is trained on original text until that helps no more, before any arm starts from it.

Where its weights come from a coarse file (4-bit, say), or its layers were cut, any training partly repairs it; an arm
would be credited with that repair. Not in the paper, whose student is an undamaged checkpoint.
"""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from brd import hardware
from brd.composing.packing import TokenRows
from brd.recipe import Recipe, changed
from brd.run import read_json, write_json
from brd.training import processes
from brd.training.student import load_student
from brd.training.trainer import train

Curve = list[tuple[int, float]]
"""(trained tokens, mean loss per token of held-out text in nats)."""


def heal(
    recipe: Recipe,
    tokens: Path,
    tokenizer: Any,
    folder: Path,
    mark: str,
    on_step: Callable[[int, int, float], None] | None = None,
) -> dict[str, Any]:
    """Train the recipe's student on ``tokens`` (see ``compose_healing``) and save it in ``folder``.

    ``mark`` names all that the result rests on: an interrupted call of the same mark is gone on with, what another one
    left is thrown away. What going on rests on stays in ``folder``.work and ``folder``.checkpoints: the caller throws
    them away, once it has noted the result. ``on_step`` is told (steps in all, step, loss). Where several processes
    train, all call this.
    Returns the ``curve``, its last point after cooling, whether the loss ``stands_still``, and what was trained.
    """
    assert recipe.healing is not None
    # What is repaired is the student itself, not an adapter of an arm. Its text is a stream whatever the lessons are,
    # and its loss is watched by whole rows.
    rate = {
        "training.learning_rate": recipe.healing.learning_rate,
        "training.attention": "row",
        "student.lora": None,
    }
    work = folder.with_name(folder.name + ".work")

    def heated_before() -> Any:
        if not (work / "mark.json").exists() or read_json(work / "mark.json") != mark:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            write_json(work / "mark.json", mark)
        return read_json(work / "heated.json")

    heated = processes.from_main(heated_before)
    if heated is None:
        heated = _heat(changed(recipe, rate), tokens, tokenizer, work, on_step)
        if processes.is_main():
            write_json(work / "heated.json", heated)
            shutil.rmtree(work / "heated.checkpoints")
    steps = _steps(tokens / "cooling", recipe)
    falling = changed(recipe, {**rate, "training.warmup": 0.0, "training.schedule": "linear"})
    last = train(
        falling,
        tokens / "cooling",
        steps,
        tokenizer,
        folder,
        partial(on_step, steps) if on_step else None,
        start=work / "heated",
        mark=mark,
        keep_checkpoints=True,
        rate_key="healing.learning_rate",
    )
    trained = heated["trained_tokens"] + last["trained_tokens"]
    loss = _watched_loss(recipe, tokens, load_student(recipe, tokenizer, folder))
    return {
        "curve": [(n, round(loss, 4)) for n, loss in [*heated["curve"], (trained, loss)]],
        "stands_still": heated["stands_still"],
        "trained_tokens": trained,
        "steps": heated["steps"] + last["steps"],
        "dtype": last["dtype"],
    }


def _heat(
    recipe: Recipe, tokens: Path, tokenizer: Any, work: Path, on_step: Callable[[int, int, float], None] | None
) -> dict[str, Any]:
    """The constant rate, until the loss stands still or the tokens are used up."""
    assert recipe.healing is not None
    settings, record = recipe.healing, work / "curve.json"
    step_tokens = recipe.composing.row_tokens * recipe.training.rows_per_step
    seen = processes.from_main(lambda: read_json(record) or [])
    curve: Curve = [(int(n), float(loss)) for n, loss in seen]

    def note(trained: int, loss: float) -> None:
        curve.append((trained, loss))
        if processes.is_main():
            write_json(record, curve)

    if not curve:
        note(0, _watched_loss(recipe, tokens, load_student(recipe, tokenizer)))

    def stands_still() -> bool:
        # Two looks at least: the first period warms up.
        return len(curve) > 2 and curve[-2][1] - curve[-1][1] < settings.enough * curve[-2][1]

    def watch(model: Any, step: int) -> bool:
        # A step that is shown again after an interruption replaces what was seen before.
        curve[:] = [point for point in curve if point[0] < step * step_tokens]
        note(step * step_tokens, _watched_loss(recipe, tokens, model))
        return stands_still()

    every = max(1, settings.check_tokens // step_tokens)
    # Whole periods, so that the last thing trained is looked at.
    steps = max(1, _steps(tokens / "heating", recipe) // every) * every
    constant = changed(recipe, {"training.warmup": 0.05, "training.schedule": "constant"})
    found = train(
        constant,
        tokens / "heating",
        steps,
        tokenizer,
        work / "heated",
        partial(on_step, steps) if on_step else None,
        watch=watch,
        watch_steps=every,
        keep_checkpoints=True,
        rate_key="healing.learning_rate",
    )
    return {
        "curve": curve,
        "stands_still": stands_still(),
        "trained_tokens": found["trained_tokens"],
        "steps": found["steps"],
    }


def _steps(tokens: Path, recipe: Recipe) -> int:
    return max(1, len(TokenRows(tokens)) // recipe.training.rows_per_step)


@torch.no_grad()
def _watched_loss(recipe: Recipe, tokens: Path, model: Any) -> float:
    """Mean loss per token over the watched rows, in the dtype of training."""
    rows, total = TokenRows(tokens / "watched"), 0.0
    model = model.to(hardware.device()).eval()
    dtype = processes.from_main(lambda: hardware.choose_dtype(recipe.training.dtype))
    for number in range(len(rows)):
        ids = torch.from_numpy(rows[number])[None].to(model.device)
        with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits.float(), ids[0, 1:]))
    return total / len(rows)
