"""A training that is ended anywhere, by anything, goes on to the same bits."""

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from brd.training import checkpoints
from brd.training.student import load_model

Trainings = Callable[..., list[dict[str, Any]]]
STEPS = 12


def weights(folder: Path) -> Any:
    return load_model(str(folder), torch.float32).state_dict()


def assert_the_same(parted: list[dict[str, Any]], whole: dict[str, Any], folder: Path, expected: Path) -> None:
    assert whole["codes"] == [0], whole["errors"]
    assert parted[-1]["result"] == whole["result"], parted[-1]["errors"]
    curve = dict(map(tuple, whole["told"]))
    for part in parted:
        for step, loss in part["told"]:
            # Not nearly: the same bits.
            assert loss == curve[step]
    ours = weights(folder)
    assert all(torch.equal(ours[name], tensor) for name, tensor in weights(expected).items())
    assert not list(folder.parent.glob(f"{folder.name}.*"))


def test_killed_anywhere_it_goes_on_to_the_same_bits(trainings: Trainings, tmp_path: Path) -> None:
    drawn = random.Random(11)
    points = [
        "start",
        "bytes 60000",  # in the midst of writing the first checkpoint's tensors
        f"fsync {drawn.randint(1, 4)}",
        f"step {drawn.randint(4, 6)}",
        "rename 1",
        f"step {drawn.randint(7, 9)}",
        f"fsync {drawn.randint(6, 9)}",
        "end",
    ]
    # What is drawn at random, dropout's too, is what would have been drawn.
    drops = {"set": ["student.dropout=0.2"]}
    killed = [{"folder": "parted", "end": point, "signal": int(signal.SIGKILL), **drops} for point in points]
    whole, parted = {"folder": "whole", **drops}, {"folder": "parted", **drops}
    found = trainings(STEPS, whole, *killed, parted, save_steps=3)
    for point, part in zip(points, found[1:], strict=False):
        expected = signal.SIGXFSZ if point.startswith("bytes") else signal.SIGKILL
        assert part["codes"] == [-expected], (point, part["errors"])
    assert_the_same(found[1:], found[0], tmp_path / "parted", tmp_path / "whole")
    # It did go on, rather than anew.
    assert found[-1]["told"] == []


def test_interrupted_anywhere_it_leaves_a_checkpoint(trainings: Trainings, tmp_path: Path) -> None:
    points = {"start": signal.SIGTERM, "step 3": signal.SIGINT, "fsync 2": signal.SIGTERM, "end": signal.SIGINT}
    ended = [{"folder": "parted", "end": point, "signal": int(number)} for point, number in points.items()]
    found = trainings(8, {"folder": "whole"}, *ended, {"folder": "parted"}, save_steps=6)
    at_end, last = found[-2:]
    for part in found[1:5]:
        assert (part["codes"], part["result"]) == ([130], "interrupted"), part["errors"]
    # Nothing is done twice: each goes on behind the step that the one before ended with.
    assert [step for part in found[1:] for step, _ in part["told"]] == list(range(1, 9))
    assert (at_end["told"][-1][0], last["told"]) == (8, [])
    assert_the_same(found[1:], found[0], tmp_path / "parted", tmp_path / "whole")


def test_a_full_disk_costs_no_checkpoint(trainings: Trainings, tmp_path: Path) -> None:
    full = {"folder": "parted", "end": "bytes 60000", "signal": 0}
    found = trainings(
        6,
        {"folder": "whole"},
        full,
        {"folder": "parted", "end": "step 5", "signal": int(signal.SIGKILL)},
        full,
        {"folder": "parted"},
        save_steps=2,
    )
    _, first, _, second, last = found
    for part, kept in ((first, "there was none before"), (second, "that of step 4 is kept")):
        assert part["codes"] == [2], part["errors"]
        assert "the checkpoint could not be written (the disk is full)" in part["result"]
        assert kept in part["result"]
    assert [step for step, _ in last["told"]] == [5, 6]
    assert_the_same(found[1:], found[0], tmp_path / "parted", tmp_path / "whole")


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "empty"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    parts = checkpoints.Parts(model, optimizer, schedule)
    model(torch.ones(4)).sum().backward()
    for step in (1, 2, 3):
        optimizer.step()
        schedule.step()
        checkpoints.save(tmp_path, step, parts, lambda path: Path(path).write_text("{}"))
    # The one before is kept.
    assert sorted(f.name for f in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    assert checkpoints.last(tmp_path) == tmp_path / "checkpoint-3"
    file = tmp_path / "checkpoint-3" / checkpoints.TENSORS
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:-1])
    elif damage == "flipped":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        file.unlink()
    else:
        for each in (tmp_path / "checkpoint-3").iterdir():
            each.write_bytes(b"")
    assert checkpoints.last(tmp_path) == tmp_path / "checkpoint-2"
    assert "checkpoint-3: passed over" in caplog.text
    checkpoints.load(tmp_path / "checkpoint-2", parts)
    assert optimizer.state[model.weight]["step"] == 2


def test_checkpoints_of_another_training_are_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = tmp_path / "brd.checkpoints"
    checkpoints.claim(kept, "one", {"training.learning_rate": 0.1, "seed": 0})
    (kept / "checkpoint-7").mkdir()
    (kept / "checkpoint-8.tmp").mkdir()
    checkpoints.claim(kept, "one", {"training.learning_rate": 0.1, "seed": 0})
    assert [f.name for f in kept.glob("checkpoint-*")] == ["checkpoint-7"]
    checkpoints.claim(kept, "two", {"training.learning_rate": 0.2, "seed": 0})
    assert not list(kept.glob("checkpoint-*"))
    assert (tmp_path / "brd.checkpoints.before" / "checkpoint-7").is_dir()
    assert "the checkpoints are of training.learning_rate 0.1 (now 0.2)" in caplog.text
    assert json.loads((kept / checkpoints.TRAINING).read_text())["mark"] == "two"
