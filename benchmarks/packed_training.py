"""Training on lessons cut at row ends and in sight of each other, beside lessons that stand whole and by themselves.

    python benchmarks/packed_training.py [--steps 24] [--row-tokens 256] [--rows 2]

The demo's student is trained twice for as many steps from the same start: `composing.packing: stream` with
`training.attention: row`, and `best_fit` with `document`. Lessons are our own passages, and again with their
capitalised words as entities behind each sentence. Tokens a second are those that are no padding, over all steps but
the first two. Since the losses of training are of other contexts, both students are also asked for held-out lessons,
each lesson by itself: that loss is the same measure for both.
"""

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from brd import hardware, recipe
from brd.composing.packing import TokenRows, encode, pack, tokenizer_mark
from brd.text.sentences import split
from brd.text.sources import paragraphs
from brd.training.memory import keep_freed_memory
from brd.training.student import load_model, student_tokenizer
from brd.training.trainer import train

WAYS = {"stream": "row", "best_fit": "document"}
HELD_OUT = 8


def lessons(held_out: bool) -> Iterator[str]:
    for number, paragraph in enumerate(paragraphs(recipe.load("demo", []).text)):
        if (number % HELD_OUT == 0) != held_out:
            continue
        yield paragraph.text
        parts = []
        for span in split(paragraph.text, "en"):
            sentence = paragraph.text[span.start : span.end]
            names = list(dict.fromkeys(re.findall(r"(?<!^)\b[A-Z]\w+", sentence)))
            parts += [sentence, f"Entities: {'; '.join(names) or 'none'}"]
        yield "\n\n".join(parts)


@torch.no_grad()
def alone(folder: Path, documents: list[list[int]], dtype: torch.dtype) -> float:
    """Mean loss per token in nats of documents that stand by themselves."""
    model = load_model(str(folder), torch.float32).eval()
    total, count = 0.0, 0
    for document in documents:
        ids = torch.tensor([document])
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        total, count = total + float(loss) * (len(document) - 1), count + len(document) - 1
    return total / count


def measured(packing: Any, options: argparse.Namespace, folder: Path, tokenizer: Any) -> dict[str, Any]:
    loaded = recipe.load(
        "demo",
        [
            f"training.attention={WAYS[packing]}",
            f"training.rows_per_step={options.rows}",
            f"training.micro_rows={min(2, options.rows)}",
            "training.save_steps=1000000",
        ],
    )
    meta = pack(
        encode(lessons(held_out=False), tokenizer),
        folder / packing,
        row_tokens=options.row_tokens,
        vocabulary=len(tokenizer),
        packing=packing,
        about={"tokenizer": tokenizer_mark(tokenizer)},
    )
    times: list[float] = []

    def on_step(step: int, loss: float) -> None:
        times.append(time.perf_counter())
        print(f"{packing}: step {step}, loss {loss:.3f}", flush=True)

    found = train(
        loaded,
        folder / packing,
        options.steps,
        tokenizer,
        folder / "student",
        on_step,
    )
    filled = TokenRows(folder / packing).filled.mean() * options.rows
    seconds = [b - a for a, b in pairwise(times[1:])]
    documents = list(encode(lessons(held_out=True), tokenizer))[: options.held_out]
    return {
        "tokens/s": filled / statistics.median(seconds),
        "trained tokens": found["trained_tokens"],
        "rows": meta["rows"],
        "padding": 1 - meta["tokens"] / (meta["rows"] * meta["row_tokens"]),
        "last losses": statistics.mean(loss for _, loss in found["losses"][-8:]),
        "held out, alone": alone(folder / "student", documents, hardware.choose_dtype(loaded.training.dtype)),
        "dtype": found["dtype"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--row-tokens", type=int, default=256)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--held-out", type=int, default=16)
    options = parser.parse_args()
    keep_freed_memory()
    tokenizer = student_tokenizer(recipe.load("demo", []))
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for packing in WAYS:
            found[packing] = measured(packing, options, Path(folder), tokenizer)
            said = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found[packing].items())
            print(f"{packing} / {WAYS[packing]}: {said}", flush=True)
    stream, whole = found["stream"], found["best_fit"]
    ratio = round(whole["tokens/s"] / stream["tokens/s"], 3)
    print(
        json.dumps(
            {
                "name": "packed_training",
                "ratio": ratio,
                "low": ratio,
                "high": ratio,
                "target": 0.9,
                "what": f"tokens/s of best_fit / document ({whole['tokens/s']:.0f}) over stream / row "
                f"({stream['tokens/s']:.0f}), padding not counted; loss of held-out lessons by themselves "
                f"{whole['held out, alone']:.4f} and {stream['held out, alone']:.4f} after {options.steps} steps",
            }
        )
    )


if __name__ == "__main__":
    main()
