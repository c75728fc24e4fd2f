"""How near do students come to the teacher that learn from kept signals, against one that learns from all its logits?

The same student is trained on the same rows in the same order towards the teacher's distributions alone: from all
logits (the teacher runs along), from the likeliest tokens and one bucket, and from the likeliest tokens and drawn ones
as `kd` keeps them. What is told is KL(teacher || student) over the whole vocabulary on held-out text, in nats a token.

    python benchmarks/distillation.py                        # the embedded model, to a student of some of its layers
    python benchmarks/distillation.py --set student.layers=[0,1,28,29] --rows 96 --steps 48
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from brd import recipe
from brd.composing.packing import TokenRows, encode, pack
from brd.reading.chosen import part_of
from brd.recipe_corpus import open_corpus
from brd.training.distillation.chunks import summed_by_chunks
from brd.training.distillation.method import method_of
from brd.training.distillation.teacher import LogitTeacher, load_logit_teacher
from brd.training.objective import Method
from brd.training.student import load_model, load_student, student_tokenizer
from brd.training.trainer import train

# 106 and 88 bytes a token with the embedded model's vocabulary.
WAYS = {"bucket": {"top": 34, "drawn": 0}, "drawn": {"top": 20, "drawn": 12}}


@dataclass(frozen=True, slots=True)
class AllLogits:
    """KL(teacher || student) of every position, the teacher run beside."""

    teacher: LogitTeacher
    plain: bool
    name: str = "all logits"

    def __call__(self, model: Any, batch: Mapping[str, torch.Tensor], count: torch.Tensor) -> torch.Tensor:
        kept = torch.ones_like(batch["input_ids"], dtype=torch.bool)
        kept[:, -1] = False
        states = self.teacher.states(batch["input_ids"])[kept]

        def loss_of(logits: torch.Tensor, part: slice) -> torch.Tensor:
            wanted = self.teacher.log_probabilities(states[part])
            ours = torch.log_softmax(logits[:, : self.teacher.known], -1)
            return torch.nn.functional.kl_div(ours, wanted, reduction="sum", log_target=True)

        return summed_by_chunks(model, batch["input_ids"], kept, self.plain, loss_of) / count


@torch.no_grad()
def divergence(model: Any, teacher: LogitTeacher, rows: TokenRows) -> float:
    """KL(teacher || student) a token over all rows."""
    objective, total = AllLogits(teacher, plain=True), 0.0
    model.eval()
    for number in range(len(rows)):
        ids = torch.from_numpy(rows[number])[None]
        total += float(objective(model, {"input_ids": ids}, torch.tensor(ids.shape[1] - 1)))
    return total / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--set", action="append", default=[], help="keys of the recipe")
    parser.add_argument("--rows", type=int, default=128, help="rows of training text")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--held-out", type=int, default=16, help="rows of held-out text")
    parser.add_argument("--ways", nargs="+", choices=("all logits", *WAYS), default=["all logits", *WAYS])
    arguments = parser.parse_args()
    base = ["training.objective=kd", "distillation.weight=1.0", "composing.row_tokens=256", "text.held_out=0.2"]
    loaded = recipe.load(arguments.recipe, [*base, *arguments.set])
    tokenizer = student_tokenizer(loaded)

    def texts(part: str) -> Iterator[str]:
        with open_corpus(loaded) as corpus:
            yield from (p.text for p in corpus if part_of(p.document, loaded.text) == part)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for part, rows in (("train", arguments.rows), ("held_out", arguments.held_out)):
            meta = pack(
                encode(texts(part), tokenizer),
                folder / part,
                row_tokens=loaded.composing.row_tokens,
                vocabulary=len(tokenizer),
                rows=rows,
            )
            print(f"{part}: {meta['tokens']} tokens, {meta['passes']} passes", flush=True)
        held_out, teacher = TokenRows(folder / "held_out"), load_logit_teacher(loaded, tokenizer)
        start = divergence(load_student(loaded, tokenizer), teacher, held_out)
        print(f"untrained: {start:.4f} nats a token", flush=True)
        found: dict[str, float] = {}
        for name in arguments.ways:
            began = time.perf_counter()
            if name == "all logits":
                method = Method(lambda plain: AllLogits(teacher, plain))
            else:
                own = recipe.changed(loaded, {f"distillation.{key}": value for key, value in WAYS[name].items()})
                method = method_of(own, folder / "train", tokenizer, folder / "signals")
            asked = time.perf_counter() - began
            train(loaded, folder / "train", arguments.steps, tokenizer, folder / "student", method=method)
            took = time.perf_counter() - began
            student = load_model(str(folder / "student"), torch.float32)
            found[name] = divergence(student, teacher, held_out)
            more = f" ({100 * (found[name] / found['all logits'] - 1):+.2f} %)" if "all logits" in found else ""
            print(f"{name}: {found[name]:.4f}{more}, {took:.0f} s, {asked:.0f} of them asking", flush=True)
        print(json.dumps({"untrained": start, **found}))


if __name__ == "__main__":
    main()
