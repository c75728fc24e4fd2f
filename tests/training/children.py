"""Trainings in processes of their own, forked from one that has imported all, which serves plans until its input ends.

A line of input names a plan, a JSON file: recipe file, token folder, steps, and for each training its folder, keys,
number of processes and where it is to be ended by a signal. The answer is, in ``<plan>.found``, for each: exit codes,
(step, loss) as they were told, what was returned, and what was written to the error output.
"""

import json
import os
import pickle
import resource
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed.fsdp
import torch.distributed.tensor

from brd import recipe
from brd.errors import BrdError
from brd.training import callbacks, checkpoints, loop, trainer, worker  # noqa: F401
from brd.training.distillation.method import method_of
from brd.training.objective import ChunkedLoss
from brd.training.student import load_student, student_tokenizer


def end_at(point: str, number: int, options: dict[str, Any]) -> None:
    """Have this process get a signal: at a step, before the nth sync or rename of a file, at the start, at the end."""

    def end() -> None:
        os.kill(os.getpid(), number)

    kind, _, count = point.partition(" ")
    told = options["on_step"]
    if kind == "step":
        options["on_step"] = lambda step, loss: (told(step, loss), end() if step == int(count) else None)
    elif kind in ("fsync", "rename"):
        plain, calls = getattr(os, kind), [0]

        def counted(*arguments: Any, **others: Any) -> Any:
            calls[0] += 1
            if calls[0] == int(count):
                end()
            return plain(*arguments, **others)

        setattr(os, kind, counted)
    elif kind == "start":

        class Ending(ChunkedLoss):
            def __call__(self, *arguments: Any) -> Any:
                end()
                return super().__call__(*arguments)

        options["objective"] = Ending()
    elif kind == "end":

        class Tokenizer:
            def __init__(self, tokenizer: Any) -> None:
                self._tokenizer = tokenizer

            def __len__(self) -> int:
                return len(self._tokenizer)

            def save_pretrained(self, folder: Path) -> None:
                end()

        options["tokenizer"] = Tokenizer(options["tokenizer"])
    elif kind == "bytes":
        # Of a file: the kernel ends who writes more (with number 0 the write fails instead).
        if number:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(count), int(count)))


class Uneven(trainer._Rows):
    """Rows of which all but a few labels are ignored, in each as many as its first token says."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = super().__getitem__(index)
        labels = row["labels"].clone()
        labels[1 + int(labels[0]) % (len(labels) - 1) :] = -100
        return {**row, "labels": labels}


def method(plan: dict[str, Any], each: dict[str, Any], tokenizer: Any) -> Any:
    """How another objective is trained that a recipe names: made once, and given to all processes, as by a run."""
    loaded = recipe.load(plan["recipe"], each.get("set", []))
    if loaded.training.objective == "lm":
        return None
    return pickle.dumps(method_of(loaded, Path(plan["tokens"]), tokenizer, Path(plan["tokens"]).parent / "signals"))


def child(
    plan: dict[str, Any], each: dict[str, Any], rank: int, told: Path, meeting: str, tokenizer: Any, made: bytes | None
) -> None:
    # Whoever runs the tests may have it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    number = each.get("processes", 1)
    if number > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number), "BRD_MEETING": meeting}
    if each.get("uneven"):
        trainer._Rows = Uneven  # type: ignore[misc]
    loaded = recipe.load(plan["recipe"], each.get("set", []))

    def on_step(step: int, loss: float) -> None:
        with told.open("a") as file:
            file.write(json.dumps([step, loss]) + "\n")

    options: dict[str, Any] = {"on_step": on_step, "tokenizer": tokenizer}
    if "end" in each and rank == each.get("rank", 0):
        end_at(each["end"], each["signal"], options)
    arguments = {
        "recipe": loaded,
        "tokens": Path(plan["tokens"]),
        "steps": plan["steps"],
        "folder": Path(each["folder"]),
        "tokenizer": options["tokenizer"],
        **({"objective": options["objective"]} if "objective" in options else {}),
        **({"held_out": Path(plan["tokens"])} if each.get("held_out") else {}),
        **({"method": pickle.loads(made)} if made else {}),
    }

    def on_held_out(step: int, loss: float) -> None:
        on_step(-step, loss)

    calls = {"on_step": options["on_step"], "on_held_out": on_held_out}
    try:
        result = worker.perform("brd.training.trainer:train", arguments, calls)
        code = 0
    except BrdError as error:
        result, code = str(error), 2
    except KeyboardInterrupt:
        result, code = "interrupted", 130
    if rank == 0:
        told.with_suffix(".result").write_text(json.dumps(result))
    os._exit(code)


def serve(plan_file: Path) -> None:
    plan = json.loads(plan_file.read_text())
    # Loaded once, and all that loading imports.
    loaded = recipe.load(plan["recipe"])
    tokenizer = student_tokenizer(loaded)
    load_student(loaded, tokenizer)
    found = []
    for each in plan["trainings"]:
        with tempfile.TemporaryDirectory() as scratch:
            told, errors = Path(scratch) / "told", Path(scratch) / "errors"
            made = method(plan, each, tokenizer)
            pids = []
            for rank in range(each.get("processes", 1)):
                pid = os.fork()
                if not pid:
                    try:
                        with errors.open("ab") as file:
                            os.dup2(file.fileno(), 1)
                            os.dup2(file.fileno(), 2)
                        os.chdir(plan_file.parent)
                        child(plan, each, rank, told, f"{scratch}/meeting", tokenizer, made)
                    except BaseException:
                        traceback.print_exc()
                        sys.stderr.flush()
                    os._exit(1)
                pids.append(pid)
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
            result = told.with_suffix(".result")
            found.append(
                {
                    "codes": codes,
                    "told": [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else [],
                    "result": json.loads(result.read_text()) if result.exists() else None,
                    "errors": errors.read_text(errors="replace"),
                }
            )
    plan_file.with_suffix(".found").write_text(json.dumps(found))


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        serve(Path(line.strip()))
        print("done", flush=True)


if __name__ == "__main__":
    main()
