"""Throughput of two processes on two cores against one process with two threads, at the same tokens a step.

    python benchmarks/parallel.py [--steps 5] [--row-tokens 512] [--rows 4] [--parallel ddp]

The embedded student is trained for a few steps each way, by the launcher that `brd train` uses; the time of a step is
the median of those between the first and the last. The first step, with what is set up in it, is left out.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

TARGET = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--row-tokens", type=int, default=512)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--parallel", choices=("ddp", "fsdp"), default="ddp")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "2"
    from brd.composing.packing import pack
    from brd.recipe import load
    from brd.training.student import student_tokenizer

    keys = {
        "composing.row_tokens": options.row_tokens,
        "training.rows_per_step": options.rows,
        "training.micro_rows": 2,
        "training.save_steps": 1000,
        "training.compile": "false",
        "training.parallel": options.parallel,
    }
    seconds: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = load("demo", [f"{key}={value}" for key, value in keys.items()])
        tokenizer = student_tokenizer(recipe)
        ids = np.random.default_rng(0).integers(0, len(tokenizer), options.row_tokens * options.rows).tolist()
        pack([ids], folder / "tokens", row_tokens=options.row_tokens, vocabulary=len(tokenizer))
        for processes in (1, 2):
            seconds[processes] = steps(recipe, processes, options.steps, tokenizer, folder)
            tokens = options.row_tokens * options.rows / statistics.median(seconds[processes])
            print(f"{processes} process{'es' if processes > 1 else ''}: {tokens:.0f} tokens/s")
    one, two = seconds[1], seconds[2]
    what = (
        f"tokens a second of 2 processes ({options.parallel}) over 1 process with 2 threads on 2 cores, "
        f"{options.rows} rows of {options.row_tokens} tokens a step; higher is better"
    )
    figures = {
        "ratio": statistics.median(one) / statistics.median(two),
        "low": min(one) / max(two),
        "high": max(one) / min(two),
    }
    rounded = {name: round(value, 3) for name, value in figures.items()}
    print(json.dumps({"name": "parallel", **rounded, "target": TARGET, "what": what}))


def steps(recipe: Any, processes: int, number: int, tokenizer: Any, folder: Path) -> list[float]:
    """Seconds of each step but the first."""
    from brd.recipe import changed
    from brd.training import launch

    times: list[float] = []
    changed_recipe = changed(recipe, {"training.processes": processes})
    task = {
        "recipe": changed_recipe,
        "tokens": folder / "tokens",
        "steps": number,
        "tokenizer": tokenizer,
        "folder": folder / f"student{processes}",
    }
    told = {"on_step": lambda step, loss: times.append(time.perf_counter())}
    launch.run(changed_recipe.training, "brd.training.trainer:train", task, told, folder / f"process{processes}")
    return [b - a for a, b in pairwise(times)]


if __name__ == "__main__":
    main()
