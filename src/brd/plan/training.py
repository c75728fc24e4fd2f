"""What training takes: tokens and steps by the recipe, seconds by a few real steps, and the space of its files."""

import math
import shutil
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from brd.experiment import Data
from brd.plan.corpus import Corpus
from brd.plan.lessons import Sample
from brd.recipe import Recipe, changed

# Optimizer steps that are really made; after every second one the state is saved.
STEPS = 4
SAVED_EVERY = 2
# Bytes a parameter: a student is saved in float32, a checkpoint has two moments of AdamW besides.
STUDENT = 4
CHECKPOINT = 12


def parameters(recipe: Recipe, tokenizer: Any) -> int:
    """The student's parameters, without loading them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from brd.embedded import model_path
    from brd.training.layers import cut_to, keep_layers

    trusted = {"trust_remote_code": recipe.student.trust_remote_code}
    config = AutoConfig.from_pretrained(model_path(recipe.student.model), **trusted)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, **trusted)
    if (layers := cut_to(recipe, None).student.layers) is not None:
        keep_layers(model, layers)
    embeddings = model.get_input_embeddings()
    more = max(0, len(tokenizer) - embeddings.num_embeddings) * embeddings.embedding_dim
    return int(model.num_parameters() + more)


def amounts(
    recipe: Recipe,
    arms: Mapping[str, tuple[Data, Recipe]],
    reference: str,
    corpus: Corpus,
    sample: Sample,
    tokenizer: Any,
) -> dict[str, dict[str, Any]]:
    """Rows of the token file, steps and trained tokens of each arm (``arms``: its kind of data and its recipe), the
    ``reference`` arm of which tells how long all train."""
    from brd.composing.compose import steps_for

    row = recipe.composing.row_tokens

    def rows_of(arm: Recipe) -> int:
        limit = arm.composing.sentences
        share = 1.0 if limit is None else min(1.0, limit / max(1.0, corpus.sentences["train"]))
        tokens = sum(
            weight * sample.tokens(arm, part, tokenizer)
            for part in ("original", *recipe.reading.names)
            if (weight := arm.composing.weight(part))
        )
        return max(1, math.ceil(tokens * corpus.characters * share / row))

    lessons = rows_of(arms[reference][1]) if arms else 0
    found: dict[str, dict[str, Any]] = {}
    for name, (data, arm) in arms.items():
        steps = steps_for(lessons, arm)
        if data == "lessons":
            rows = lessons if name == reference else rows_of(arm)
        else:
            rows = max(lessons, steps_for(lessons, arm) * arm.training.rows_per_step)
        trained = steps * arm.training.rows_per_step * row
        found[name] = {"rows": rows, "steps": steps, "tokens": trained, "save_steps": arm.training.save_steps}
    return found


def seconds(
    recipe: Recipe, sample: Sample, tokenizer: Any, folder: Path, progress: Callable[[int, int], None]
) -> dict[str, float]:
    """A few real steps on rows of sampled lessons: seconds that come ``once`` in a process, until the first step is
    done (``start``: loading, compiling), of a ``step``, of saving a ``checkpoint``, and of the ``end`` (a last
    checkpoint, the student). ``folder`` is removed.
    """
    from brd.composing.packing import encode, pack

    begun = time.perf_counter()
    import_module("transformers.trainer")
    from brd import hardware
    from brd.training.layers import cut_to
    from brd.training.trainer import train

    hardware.choose_dtype(recipe.training.dtype)
    once = time.perf_counter() - begun
    few = cut_to(changed(recipe, {"training.save_steps": SAVED_EVERY}), None)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        pack(
            encode(sample.mixed(recipe), tokenizer),
            folder / "tokens",
            row_tokens=recipe.composing.row_tokens,
            vocabulary=len(tokenizer),
            packing=recipe.composing.packing,
            rows=STEPS * recipe.training.rows_per_step,
        )
        times = [time.perf_counter()]

        def on_step(step: int, _: float) -> None:
            times.append(time.perf_counter())
            progress(step, STEPS)

        train(few, folder / "tokens", STEPS, tokenizer, folder / "student", on_step)
        times.append(time.perf_counter())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    took = [b - a for a, b in pairwise(times)]
    # The state is saved behind step 2, which shows in the next one.
    step = (took[1] + took[3]) / 2
    spread, checkpoint = abs(took[1] - took[3]) / 2, max(0.0, took[2] - step)
    return {"once": once, "start": took[0], "step": step, "spread": spread, "checkpoint": checkpoint, "end": took[4]}


def arm_seconds(costs: dict[str, float], steps: int, save_steps: int) -> tuple[float, float]:
    """Seconds of an arm, and how far off they may be by the steps' own spread."""
    saved = (steps - 1) // save_steps * costs["checkpoint"]
    return costs["start"] + (steps - 1) * costs["step"] + saved + costs["end"], (steps - 1) * costs["spread"]
