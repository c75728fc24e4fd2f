"""Training tokens a second and peak memory: the trainer of an arm against TRL's SFTTrainer at its best packing.

    python benchmarks/training.py [--rounds 3] [--steps 6] [--row-tokens 512] [--rows 4] [--layers 30]

Both train the embedded 135 M student on the same documents (our own passages and, behind each sentence, its capitalised
words), packed whole into rows and out of each other's sight: `best_fit` with `training.attention: document` here,
`bfd_split` there, which drops nothing either. Same dtype and rows a step, neither with activation checkpointing, TRL's
loss in chunks as is its default. Every run is a process of its own, so that its memory can be told; tokens that are
padding do not count; the first two steps are left out. The order alternates. Beside it: both with activation
checkpointing, ours at its best setting (compiled), TRL at its defaults (checkpointing, no packing), and the share of
the processor's matrix-product rate, counting six operations a weight and token (eight with checkpointing).
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

TARGET = 1.1
LEFT_OUT = 2


def documents(count: int) -> Iterator[str]:
    """``count`` documents, ours in turn and again from the first."""
    import re

    from brd import recipe
    from brd.text.sentences import split
    from brd.text.sources import paragraphs

    texts = [p.text for p in paragraphs(recipe.load("demo", []).text)]
    for number in range(count):
        text = texts[number % len(texts)]
        parts = []
        for span in split(text, "en"):
            sentence = text[span.start : span.end]
            names = list(dict.fromkeys(re.findall(r"(?<!^)\b[A-Z]\w+", sentence)))
            parts += [sentence, f"Entities: {'; '.join(names) or 'none'}"]
        yield "\n\n".join(parts)


def ours(options: argparse.Namespace, folder: Path, checkpointing: bool, compiled: bool) -> dict[str, Any]:
    from brd import recipe
    from brd.composing.packing import TokenRows, encode, pack
    from brd.training.student import student_tokenizer
    from brd.training.trainer import row_order, train

    loaded = recipe.load(
        "demo",
        [
            "composing.packing=best_fit",
            "training.attention=document",
            f"training.activation_checkpointing={str(checkpointing).lower()}",
            f"training.compile={str(compiled).lower()}",
            f"training.rows_per_step={options.rows}",
            f"training.micro_rows={options.rows}",
            "training.save_steps=1000000",
            f"student.layers={list(range(options.layers))}",
        ],
    )
    tokenizer = student_tokenizer(loaded)
    pack(
        encode(documents(options.documents), tokenizer),
        folder / "tokens",
        row_tokens=options.row_tokens,
        vocabulary=len(tokenizer),
        packing="best_fit",
    )
    times: list[float] = []
    train(
        loaded,
        folder / "tokens",
        options.steps,
        tokenizer,
        folder / "student",
        on_step=lambda step, loss: times.append(time.perf_counter()),
    )
    rows = TokenRows(folder / "tokens")
    order = row_order(len(rows), options.steps * options.rows, loaded.seed)
    real = [int(rows.filled[order[n : n + options.rows]].sum()) for n in range(0, len(order), options.rows)]
    return {"times": times, "real": real}


def trl(options: argparse.Namespace, folder: Path, checkpointing: bool, defaults: bool) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from brd import hardware, recipe
    from brd.training.student import load_student, student_tokenizer

    loaded = recipe.load("demo", [f"student.layers={list(range(options.layers))}"])
    tokenizer = student_tokenizer(loaded)
    model = load_student(loaded, tokenizer)
    bf16 = hardware.choose_dtype("auto") == torch.bfloat16
    how: dict[str, Any] = {"packing": not defaults, "packing_strategy": "bfd_split"}
    if not defaults:
        how["gradient_checkpointing"] = checkpointing
    times: list[float] = []
    seen: list[int] = []

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            times.append(time.perf_counter())
            seen.append(int(state.num_input_tokens_seen))

    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"text": list(documents(options.documents))}),
        callbacks=[Watch()],
        args=SFTConfig(
            output_dir=str(folder),
            max_length=options.row_tokens,
            max_steps=options.steps,
            per_device_train_batch_size=options.rows,
            bf16=bf16,
            use_cpu=hardware.device().type == "cpu",
            optim="adamw_torch_fused",
            learning_rate=5e-5,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            include_num_input_tokens_seen="non_padding",
            **how,
        ),
    )
    trainer.train()
    return {"times": times, "real": [b - a for a, b in pairwise([0, *seen])]}


RUNS = {
    "ours": lambda o, f: ours(o, f, checkpointing=False, compiled=False),
    "trl": lambda o, f: trl(o, f, checkpointing=False, defaults=False),
    "ours checkpointing": lambda o, f: ours(o, f, checkpointing=True, compiled=False),
    "trl checkpointing": lambda o, f: trl(o, f, checkpointing=True, defaults=False),
    "ours compiled": lambda o, f: ours(o, f, checkpointing=False, compiled=True),
    "trl defaults": lambda o, f: trl(o, f, checkpointing=True, defaults=True),
}


def work(name: str, options: argparse.Namespace) -> None:
    """One run in this process; its figures as the last line."""
    from brd import hardware

    with tempfile.TemporaryDirectory() as folder:
        found = RUNS[name](options, Path(folder))
    seconds = [b - a for a, b in pairwise(found["times"])][LEFT_OUT - 1 :]
    real = found["real"][LEFT_OUT:]
    dtype = hardware.choose_dtype("auto")
    unit = 1024**2 if sys.platform == "darwin" else 1024
    said = {
        "tokens/s": sum(real) / sum(seconds),
        "MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit,
        "rate": hardware.matmul_rate(dtype),
        "dtype": hardware.dtype_name(dtype),
        "weights": weights(options.layers),
    }
    print(json.dumps(said))


def weights(layers: int) -> int:
    """Weights that a token is multiplied with: all but the norms, the output embedding among them."""
    from transformers import AutoConfig

    from brd import embedded

    config = AutoConfig.from_pretrained(embedded.model_path(embedded.MODEL_NAME))
    size, heads, kv = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    attention = 2 * size * size + 2 * size * (size // heads) * kv
    return int(layers * (attention + 3 * size * config.intermediate_size) + size * config.vocab_size)


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    given = [f"--{k.replace('_', '-')}={getattr(options, k)}" for k in ("steps", "row_tokens", "rows", "layers")]
    command = [sys.executable, __file__, "--work", name, f"--documents={options.documents}", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().rsplit("\n", 1)[-1])
    operations = 8 if "checkpointing" in name or name == "trl defaults" else 6
    share = operations * found["weights"] * found["tokens/s"] / found["rate"]
    print(
        f"{name}: {found['tokens/s']:.0f} tokens/s, {found['MB']:.0f} MB at most, {share:.0%} of "
        f"{found['rate'] / 1e9:.0f} GFLOP/s ({found['dtype']})",
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--row-tokens", type=int, default=512)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--documents", type=int, default=400)
    parser.add_argument("--work", choices=RUNS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options)
        return
    ratios: list[float] = []
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for number in range(options.rounds):
        names = ("ours", "trl") if number % 2 == 0 else ("trl", "ours")
        found = {name: run(name, options) for name in names}
        pairs.append((found["ours"], found["trl"]))
        ratios.append(found["ours"]["tokens/s"] / found["trl"]["tokens/s"])
    rest = {name: run(name, options) for name in RUNS if name not in ("ours", "trl")}
    best = max((rest["ours compiled"], *(mine for mine, _ in pairs)), key=lambda f: float(f["tokens/s"]))
    print(
        f"with activation checkpointing "
        f"{rest['ours checkpointing']['tokens/s'] / rest['trl checkpointing']['tokens/s']:.2f} times; our best against "
        f"TRL's defaults {best['tokens/s'] / rest['trl defaults']['tokens/s']:.2f} times; memory "
        f"{statistics.median(mine['MB'] / theirs['MB'] for mine, theirs in pairs):.2f} times, with checkpointing "
        f"{rest['ours checkpointing']['MB'] / rest['trl checkpointing']['MB']:.2f} times"
    )
    print(
        json.dumps(
            {
                "name": "training",
                "ratio": round(statistics.median(ratios), 3),
                "low": round(min(ratios), 3),
                "high": round(max(ratios), 3),
                "target": TARGET,
                "what": "tokens/s without padding, ours over TRL's SFTTrainer (bfd_split, chunked loss), neither with "
                f"activation checkpointing, {pairs[0][0]['dtype']}",
            }
        )
    )


if __name__ == "__main__":
    main()
