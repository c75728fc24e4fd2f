"""What training takes: tokens and steps by the recipe, seconds by a few real steps, and the space of its files."""

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from operator import mul
from pathlib import Path
from typing import Any

import numpy as np

from brd.composing.best_fit import best_fit, pieces
from brd.composing.packing import TokenRows, encode, pack
from brd.experiment import Data
from brd.plan.corpus import Corpus
from brd.plan.lessons import Sample
from brd.recipe import Recipe, changed

# Optimizer steps that are really made of the first kind of training, after every second one of which the state is
# saved; and of each other kind, of which only the steps are to be timed.
STEPS = 4
SAVED_EVERY = 2
FEWER = 3
# Documents that are packed to see how full rows become.
PACKED = 50_000
# Bytes a parameter: a student is saved in float32, a checkpoint has two moments of AdamW besides.
STUDENT = 4
CHECKPOINT = 12
# Keys that say what a step takes, beside the student; of those of distillation that decide, the ones that do not.
_A_STEP = {"objective", "rows_per_step", "micro_rows", "attention", "dtype", "compile", "activation_checkpointing"}
_A_STEP |= {"parallel", "processes"}
_NO_TIME = {"weight", "temperature", "beta"}
# Kinds of data that are the same for all seeds.
_SEEDLESS: tuple[Data, ...] = ("original", "same", "continuations")

Composed = Mapping[str, tuple[Data, Recipe]]
"""What is composed, by arms' names: the kind of data, and the arm's recipe."""


def parameters(recipe: Recipe, tokenizer: Any) -> int:
    """The student's parameters, without loading them."""
    from brd.training.layers import cut_to, keep_layers

    model = _without_weights(recipe.student.model, recipe.student.trust_remote_code)
    if (layers := cut_to(recipe, None).student.layers) is not None:
        keep_layers(model, layers)
    embeddings = model.get_input_embeddings()
    more = max(0, len(tokenizer) - embeddings.num_embeddings) * embeddings.embedding_dim
    return int(model.num_parameters() + more)


def teacher_bytes(recipe: Recipe) -> int:
    """The memory of the weights of a teacher of distillation, without loading them."""
    import torch

    from brd import hardware

    dtype = hardware.choose_dtype(recipe.distillation.teacher_dtype)
    model = _without_weights(
        recipe.distillation.teacher_model or recipe.teacher.model, recipe.teacher.trust_remote_code
    )
    # Its output embedding is held in float32 besides.
    head = 0 if dtype == torch.float32 else model.get_output_embeddings().weight.numel() * 4
    return int(model.num_parameters() * dtype.itemsize + head)


def _without_weights(name: str, trust_remote_code: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from brd.training.student import load_config

    config = load_config(name, trust_remote_code)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


@dataclass(frozen=True, slots=True)
class Amount:
    """What an arm trains on and how long: rows of its token file, of which documents take up the share ``fill``."""

    rows: int
    fill: float
    steps: int
    tokens: int


def amounts(arms: Composed, reference: str, corpus: Corpus, sample: Sample, tokenizer: Any) -> dict[str, Amount]:
    """Those of each arm; the ``reference`` arm tells how long all train, and how full rows are at most."""
    from brd.composing.compose import steps_for

    def lessons_of(arm: Recipe, fill: float) -> tuple[int, float]:
        limit, row = arm.composing.sentences, arm.composing.row_tokens
        share = 1.0 if limit is None else min(1.0, limit / max(1.0, corpus.sentences["train"]))
        times = corpus.characters * share / sample.characters
        parts = [
            (weight * times, sample.lengths(arm, part, tokenizer))
            for part in ("original", *arm.reading.names)
            if (weight := arm.composing.weight(part))
        ]
        if arm.composing.packing == "best_fit":
            fill = min(fill, _fill(parts, row))
        return max(1, math.ceil(sum(weight * sum(found) for weight, found in parts) / (row * fill))), fill

    rows, full = lessons_of(arms[reference][1], 1.0) if arms else (0, 1.0)
    found: dict[str, Amount] = {}
    for name, (data, arm) in arms.items():
        a_step, steps = arm.training.rows_per_step, steps_for(rows, arm)
        own = (rows, full) if name == reference else (max(rows, steps * a_step), full)
        if data == "lessons" and name != reference:
            own = lessons_of(arm, full)
        found[name] = Amount(*own, steps, round(steps * a_step * arm.composing.row_tokens * own[1]))
    return found


def _fill(parts: list[tuple[float, list[int]]], row: int) -> float:
    """How full rows become by best fit. ``parts``: how many times there are lessons of such lengths."""
    there = sum(times * len(found) for times, found in parts)
    scale = min(1.0, PACKED / max(1.0, there))
    many = [np.resize(found, round(times * scale * len(found))) for times, found in parts if found]
    lengths = np.concatenate([np.empty(0, dtype=np.int64), *many]).astype(np.int64)
    if not len(lengths):
        return 1.0
    _, lengths = pieces(np.zeros_like(lengths), lengths, row)
    return float(lengths.sum() / ((best_fit(lengths, row).max() + 1) * row))


def kinds(arms: Mapping[str, Recipe]) -> dict[str, str]:
    """Arms whose steps take as long, each named by the first of them."""
    found: dict[str, str] = {}
    first: dict[str, str] = {}
    for name, arm in arms.items():
        objective, teacher = arm.training.objective, arm.distillation.teacher_model
        deciding: dict[str, Any] = {}
        if objective != "lm":
            told = arm.distillation.deciding(objective)
            deciding = {"teacher": teacher, **{key: told[key] for key in told.keys() - _NO_TIME}}
        how = json.dumps([arm.training.model_dump(include=_A_STEP), deciding], sort_keys=True)
        found[name] = first.setdefault(how, name)
    return found


def seconds(
    arms: Mapping[str, Recipe], sample: Sample, tokenizer: Any, folder: Path, progress: Callable[[int, int], None]
) -> tuple[float, dict[str, dict[str, float]]]:
    """A few real steps by the recipe of each of ``arms`` on rows of sampled lessons.

    Returns the seconds that come once in a run, and of each arm those until the first step is done (``start``: loading,
    compiling), of a ``step``, of saving a ``checkpoint``, and of the ``end`` (a last checkpoint, the student). A
    teacher that is asked beforehand takes ``loading``, and so long for a ``signal`` (of a token). ``spread`` is how far
    off a step may be; ``luck`` by how much steps differ among each other. ``folder`` is removed.
    """
    begun = time.perf_counter()
    import_module("transformers.trainer")
    from brd import hardware

    for arm in arms.values():
        hardware.choose_dtype(arm.training.dtype)
    once = time.perf_counter() - begun
    ways = {name: _ways(arm) for name, arm in arms.items()}
    total = STEPS - FEWER + FEWER * sum(map(len, ways.values()))
    found: dict[str, dict[str, float]] = {}
    checkpoint, done = None, 0

    def on_step() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    try:
        for name, some in ways.items():
            measured = []
            for _, arm in some:
                shutil.rmtree(folder, ignore_errors=True)
                measured.append(_measured(arm, sample, tokenizer, folder, checkpoint, on_step))
                checkpoint = measured[-1]["checkpoint"]
            shares = [share for share, _ in some]
            found[name] = {key: sum(map(mul, shares, (m[key] for m in measured))) for key in measured[0]}
            apart = abs(measured[0]["step"] - measured[-1]["step"])
            batches = arms[name].training.rows_per_step / arms[name].training.micro_rows
            found[name]["luck"] = apart * math.sqrt(math.prod(shares) / batches)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return once, found


def _ways(arm: Recipe) -> list[tuple[float, Recipe]]:
    """What an arm does in its batches, and in which share of them; GKD draws which of two."""
    share = arm.distillation.on_policy
    if arm.training.objective != "gkd" or share in (0, 1):
        return [(1.0, arm)]
    key = "distillation.on_policy"
    return [(share, changed(arm, {key: 1.0})), (1 - share, changed(arm, {key: 0.0}))]


def _measured(
    arm: Recipe, sample: Sample, tokenizer: Any, folder: Path, checkpoint: float | None, on_step: Callable[[], None]
) -> dict[str, float]:
    """``checkpoint`` is what saving one takes, where that was measured."""
    from brd.training import launch
    from brd.training.distillation.method import method_of
    from brd.training.layers import cut_to

    steps, saved_every = (STEPS, SAVED_EVERY) if checkpoint is None else (FEWER, FEWER)
    few = cut_to(changed(arm, {"training.save_steps": saved_every}), None)
    row = arm.composing.row_tokens
    rows = steps * arm.training.rows_per_step
    tokens = folder / "tokens"
    packing = arm.composing.packing
    texts = encode(sample.mixed(arm), tokenizer)
    pack(texts, tokens, row_tokens=row, vocabulary=len(tokenizer), packing=packing, rows=rows)
    asking = _signals(arm, tokens, tokenizer, folder / "signals") if arm.training.objective == "kd" else {}
    times = [time.perf_counter()]

    def noted(_: int, __: float) -> None:
        times.append(time.perf_counter())
        on_step()

    task = {
        "recipe": few,
        "tokens": tokens,
        "steps": steps,
        "tokenizer": tokenizer,
        "folder": folder / "student",
        "method": method_of(few, tokens, tokenizer, folder / "signals") if few.training.objective != "lm" else None,
    }
    launch.run(few.training, "brd.training.trainer:train", task, {"on_step": noted}, folder / "process")
    times.append(time.perf_counter())
    start, *took, end = [b - a for a, b in pairwise(times)]
    # Where the state is saved behind step 2, it shows in the next one.
    plain = [took[0], took[-1]]
    step = sum(plain) / 2
    return {
        "start": start,
        "step": step,
        "spread": abs(plain[0] - plain[1]) / 2,
        "checkpoint": max(0.0, took[1] - step) if checkpoint is None else checkpoint,
        "end": end,
        **asking,
    }


def _signals(arm: Recipe, tokens: Path, tokenizer: Any, folder: Path) -> dict[str, float]:
    """Seconds until a teacher of distributions is loaded, and of each token."""
    import torch

    from brd import hardware
    from brd.training.distillation.method import about_kept
    from brd.training.distillation.signals import signals_of
    from brd.training.distillation.teacher import load_logit_teacher

    times, rows = [time.perf_counter()], TokenRows(tokens)
    about, teacher = about_kept(arm, tokens, tokenizer), load_logit_teacher(arm, tokenizer)
    # A first pass bears what comes once.
    teacher.log_probabilities(teacher.states(torch.from_numpy(rows[0])[None].to(hardware.device()))[0])
    times.append(time.perf_counter())
    signals_of(tokens, folder, about, lambda: teacher)
    times.append(time.perf_counter())
    return {"loading": times[1] - times[0], "signal": (times[2] - times[1]) / (about.rows * about.row_tokens)}


def signals(arms: Composed, found: Mapping[str, Amount], vocabulary: int) -> dict[str, tuple[int, int]]:
    """Tokens that a teacher is asked about before an arm that learns its distributions trains, and bytes of what is
    kept: of each arm that is not served by those of another."""
    from brd.training.distillation.signals import About

    shared: dict[str, tuple[int, int]] = {}
    marks: set[str] = set()
    for name, (data, arm) in arms.items():
        if arm.training.objective != "kd":
            continue
        settings, rows, row = arm.distillation, found[name].rows, arm.composing.row_tokens
        teacher = {"model": settings.teacher_model or arm.teacher.model, "dtype": settings.teacher_dtype}
        # The text, as far as arms of one run differ in it.
        text: list[Any] = [data, arm.composing.sentences]
        if data not in _SEEDLESS:
            text = [data, arm.seed, arm.composing.model_dump(), arm.task_data.model_dump()]
        kept = (settings.top, settings.drawn, settings.temperature)
        # By rows and by documents the teacher reads the same text twice.
        apart = arm.training.attention if arm.training.attention == "document" else None
        about = About(teacher, json.dumps(text), rows, row, vocabulary, *kept, documents=apart)
        if about.name not in marks:
            marks.add(about.name)
            shared[name] = (rows * row, rows * row * about.record.itemsize)
    return shared


def arm_seconds(costs: Mapping[str, float], steps: int, save_steps: int) -> tuple[float, float]:
    """Seconds of an arm, and how far off they may be by the steps' own spread."""
    saved = (steps - 1) // save_steps * costs["checkpoint"]
    off = (steps - 1) * costs["spread"] + 1.96 * math.sqrt(steps - 1) * costs["luck"]
    return costs["start"] + (steps - 1) * costs["step"] + saved + costs["end"], off
