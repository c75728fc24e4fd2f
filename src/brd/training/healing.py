"""Healing: the student is trained on original text until that helps no more, before any arm starts from it.

Where its weights come from a coarse file (4-bit, say), or its layers were cut, any training partly repairs it; an arm
would be credited with that repair. Not in the paper, whose student is an undamaged checkpoint.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from brd.composing.packing import TokenRows
from brd.recipe import Recipe, changed
from brd.run import write_json
from brd.training.trainer import train


def heal(
    recipe: Recipe, tokens: Path, tokenizer: Any, folder: Path, on_step: Callable[[int], Callable[[int, float], None]]
) -> dict[str, Any]:
    """Train the recipe's student on ``tokens`` (see ``compose_healing``) and save it in ``folder``.

    ``on_step(steps)`` gives what is told (step, loss). Returns the ``curve`` of (trained tokens, loss on held-out
    text), the last point after cooling, whether the loss ``stands_still``, and the trained tokens. An interrupted call
    goes on where it was.
    """
    assert recipe.healing is not None
    settings, watched = recipe.healing, TokenRows(tokens / "watched")
    heated = folder.with_name(folder.name + ".heated")
    record = folder.with_name(folder.name + ".curve.json")
    step_tokens = recipe.composing.row_tokens * recipe.training.rows_per_step
    curve: list[tuple[int, float]] = []
    if record.exists():
        curve = [(int(n), float(loss)) for n, loss in json.loads(record.read_text())]

    def stands_still() -> bool:
        return len(curve) > 1 and curve[-2][1] - curve[-1][1] < settings.enough * curve[-2][1]

    def watch(model: Any, step: int) -> bool:
        # A step that is shown again after an interruption replaces what was seen before.
        curve[:] = [point for point in curve if point[0] < step * step_tokens]
        curve.append((step * step_tokens, held_out_loss(model, watched)))
        write_json(record, curve)
        return stands_still()

    if not (heated / "config.json").exists():
        if not curve:
            from brd.training.student import load_student

            curve.append((0, held_out_loss(load_student(recipe, tokenizer).eval(), watched)))
            write_json(record, curve)
        every = max(1, settings.check_tokens // step_tokens)
        # Whole periods, so that the last thing trained is looked at.
        steps = max(1, _steps(tokens / "heating", recipe) // every) * every
        rates = {"training.learning_rate": settings.learning_rate, "training.warmup": 0.05}
        train(
            changed(recipe, {**rates, "training.schedule": "constant"}),
            tokens / "heating",
            steps,
            tokenizer,
            heated,
            on_step(steps),
            watch=watch,
            watch_steps=every,
        )
    still, trained = stands_still(), curve[-1][0]
    steps = _steps(tokens / "cooling", recipe)

    def at_the_end(model: Any, step: int) -> bool:
        watch(model, trained // step_tokens + step)
        return False

    falling = {"training.learning_rate": settings.learning_rate, "training.warmup": 0.0, "training.schedule": "linear"}
    last = train(
        changed(recipe, falling),
        tokens / "cooling",
        steps,
        tokenizer,
        folder,
        on_step(steps),
        start=heated,
        watch=at_the_end,
        watch_steps=steps,
    )
    return {
        "curve": [(n, round(loss, 4)) for n, loss in curve],
        "stands_still": still,
        "trained_tokens": trained + last["trained_tokens"],
        "steps": trained // step_tokens + steps,
        "dtype": last["dtype"],
    }


def _steps(tokens: Path, recipe: Recipe) -> int:
    return max(1, len(TokenRows(tokens)) // recipe.training.rows_per_step)


@torch.no_grad()
def held_out_loss(model: Any, rows: TokenRows) -> float:
    """Mean loss per token in nats over all rows, in float32."""
    total = 0.0
    for number in range(len(rows)):
        ids = torch.from_numpy(rows[number])[None].to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))
    return total / len(rows)
