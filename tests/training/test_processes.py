"""One, two and four processes, DDP and sharded, with any accumulation: one curve."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from brd import recipe
from brd.composing.packing import pack
from brd.errors import BrdError
from brd.sections.training import Training
from brd.training import launch
from brd.training.student import load_model

Trainings = Callable[..., list[dict[str, Any]]]


def test_the_curve_is_the_same_by_any_number_of_processes(trainings: Trainings, tmp_path: Path) -> None:
    ways = [
        {"processes": 1, "set": ["training.micro_rows=4"]},
        {"processes": 1, "set": ["training.micro_rows=1"]},
        {"processes": 2, "set": ["training.micro_rows=2", "training.activation_checkpointing=true"]},
        {"processes": 4, "set": ["training.micro_rows=1"]},
        {"processes": 2, "set": ["training.micro_rows=1", "training.parallel=fsdp"]},
    ]
    each = [{**way, "folder": f"way{n}", "uneven": True, "held_out": True} for n, way in enumerate(ways)]
    found = trainings(20, *each, evaluate_steps=10)
    for way, one in zip(ways, found, strict=True):
        assert one["codes"] == [0] * way["processes"], one["errors"]  # type: ignore[operator]
        assert one["result"]["loss"] == "chunked"
        for (step, loss), (expected_step, expected) in zip(one["told"], found[0]["told"], strict=True):
            assert step == expected_step
            assert loss == pytest.approx(expected, rel=1e-5), (way, step)
    # Twenty steps, and held-out text at two of them.
    assert len(found[0]["told"]) == 22
    expected = load_model(str(tmp_path / "way0"), torch.float32).state_dict()
    for number in range(1, len(ways)):
        ours = load_model(str(tmp_path / f"way{number}"), torch.float32).state_dict()
        for name, tensor in expected.items():
            torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-4)


def test_other_processes_go_on_with_a_checkpoint(trainings: Trainings) -> None:
    killed = {"folder": "parted", "signal": int(signal.SIGTERM)}
    found = trainings(
        8,
        {"folder": "whole"},
        {**killed, "processes": 2, "end": "step 3", "rank": 0, "set": ["training.parallel=fsdp"]},
        {**killed, "processes": 1, "end": "step 5"},
        {"folder": "parted", "processes": 2},
        save_steps=100,
    )
    assert [one["codes"] for one in found] == [[0], [130, 130], [130], [0, 0]], found[0]["errors"]
    told = [line for one in found[1:] for line in one["told"]]
    assert [step for step, _ in told] == list(range(1, 9))
    assert [loss for _, loss in told] == pytest.approx([loss for _, loss in found[0]["told"]], rel=1e-5)


def test_rows_that_cannot_be_dealt_evenly_are_refused(trainings: Trainings) -> None:
    found = trainings(2, {"folder": "a", "processes": 3})
    assert found[0]["codes"] == [2, 2, 2], found[0]["errors"]
    assert found[0]["result"].startswith("training.rows_per_step: 4 rows cannot be dealt to 3 processes evenly; set")


def test_plain_brd_run_starts_the_processes_itself(
    brd_here: Any, recipe_file: Any, tmp_path: Path, little_model: Path
) -> None:
    file = recipe_file(
        training={"processes": 2, "evaluate_steps": 2},
        student={"model": str(little_model)},
        reading={"sentences": 4, "held_out_sentences": 2},
        arms=["base", "brd"],
    )
    done = brd_here("run", file, "--until", "train")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "small"
    assert (run / "students" / "brd" / "model.safetensors").exists()
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["train_step"] for line in logged if line.get("arm") == "brd" and "loss" in line]
    assert steps == list(range(1, len(steps) + 1)) != []
    assert json.loads((run / "steps" / "train.brd.json").read_text())["result"]["processes"] == 2
    assert any("held_out_loss" in line for line in logged)
    assert sorted(f.name for f in (run / "students").iterdir()) == ["base", "brd"]


JOINED = """
import os, sys
import torch.distributed, transformers.trainer
from brd.cli import entry
port, rest = sys.argv[1], sys.argv[2:]
pids = []
for rank in range(2):
    pid = os.fork()
    if not pid:
        os.environ |= {"SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": str(rank)}
        os.environ |= {"SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": port}
        sys.argv = ["brd", *rest]
        code = 0
        try:
            entry()
        except SystemExit as leave:
            code = leave.code or 0
        os._exit(code)
    pids.append(pid)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids])
"""


def test_processes_that_a_launcher_started_join(recipe_file: Any, tmp_path: Path, little_model: Path) -> None:
    model = {"model": str(little_model)}
    file = recipe_file(student=model, arms=["base", "brd"], reading={"sentences": 4, "held_out_sentences": 2})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", JOINED, port, "run", str(file), "--until", "train"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.stdout.splitlines()[-1] == "[0, 0]", done.stderr
    # One of them has said and written all.
    assert done.stderr.count("train.brd: done") == 1, done.stderr
    run = tmp_path / "runs" / "small"
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["train_step"] for line in logged if line.get("arm") == "brd"]
    assert steps == list(range(1, len(steps) + 1)) != []
    assert json.loads((run / "steps" / "train.brd.json").read_text())["result"]["processes"] == 2


def test_ctrl_c_and_the_loss_of_a_process_leave_a_checkpoint(launched: Any, tmp_path: Path) -> None:
    whole = launched(8, "training.processes=1", folder="whole")

    def interrupt(step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        launched(8, "training.processes=2", folder="parted", at=interrupt)

    def kill(step: int) -> None:
        if step == 7:
            os.kill(max(pid for pid, parent in children() if parent == os.getpid()), signal.SIGKILL)

    with pytest.raises(BrdError, match=r"^training: process \d of 2 was killed .*; run the same command again"):
        launched(8, "training.processes=2", "training.save_steps=6", folder="parted", at=kill)
    last = launched(8, "training.processes=1", folder="parted")
    assert [loss for _, loss in last["losses"]] == pytest.approx([loss for _, loss in whole["losses"]], abs=2e-4)


def test_a_workers_error_is_one_line(tmp_path: Path) -> None:
    settings = Training(processes=2)
    with pytest.raises(BrdError, match=r"^nowhere: no such recipe"):
        launch.run(settings, "brd.recipe:load", {"name": "nowhere"}, {}, tmp_path / "process")
    with pytest.raises(RuntimeError, match=r"process \d of 2: AttributeError: .*\(.*process\.\d\.log has it all\)"):
        launch.run(settings, "brd.recipe:nothing", {}, {}, tmp_path / "process")


STARTER = """
from pathlib import Path
from brd.sections.training import Training
from brd.training import launch
launch.run(Training(processes=2), "runpy:run_path", {"path_name": "wait.py"}, {}, Path("process"))
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc which processes there are")
def test_workers_end_when_the_one_who_started_them_is_killed(tmp_path: Path) -> None:
    (tmp_path / "wait.py").write_text("import os, signal\nopen(f'{os.getpid()}.up', 'w')\nsignal.pause()\n")
    starter = subprocess.Popen([sys.executable, "-c", STARTER], cwd=tmp_path)
    try:
        assert within(60, lambda: len(list(tmp_path.glob("*.up"))) == 2)
    finally:
        starter.kill()
        starter.wait()
    workers = [int(file.stem) for file in tmp_path.glob("*.up")]
    assert within(30, lambda: not any(running(worker) for worker in workers))


def within(seconds: float, done: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.05)
    return done()


def running(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    # Whoever inherits them may leave them as zombies.
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("nodes", "first"), [("n1", "n1"), ("n[07-12,15],m1", "n07"), ("gpu-a01,gpu-a02", "gpu-a01"), ("n[3,5]", "n3")]
)
def test_the_first_host_of_slurms_list(nodes: str, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        # Set and taken away, so that what the call sets is undone.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_STEP_NODELIST", nodes)
    assert launch.given() == 2
    assert (os.environ["RANK"], os.environ["MASTER_ADDR"]) == ("1", first)


def children() -> list[tuple[int, int]]:
    """(process, its parent) of all, where the system tells."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            found.append((int(status.parent.name), int(fields[1])))
    return found


@pytest.fixture
def launched(recipe_file: Any, little_model: Path, tmp_path: Path, little_tokenizer: Any) -> Any:
    numbers = np.random.default_rng(0).integers(0, 512, 10 * 16).tolist()
    pack([numbers], tmp_path / "tokens", row_tokens=16, vocabulary=512)
    file = recipe_file(student={"model": str(little_model)}, training={"save_steps": 100, "micro_rows": 1})

    def run(steps: int, *keys: str, folder: str, at: Callable[[int], None] = lambda step: None) -> Any:
        loaded = recipe.load(str(file), list(keys))
        task = {
            "recipe": loaded,
            "tokens": tmp_path / "tokens",
            "steps": steps,
            "tokenizer": little_tokenizer,
            "folder": tmp_path / folder,
        }
        told = {"on_step": lambda step, loss: at(step)}
        return launch.run(loaded.training, "brd.training.trainer:train", task, told, tmp_path / "process")

    return run
