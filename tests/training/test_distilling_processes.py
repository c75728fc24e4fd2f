"""The objectives of distillation by one process and by two: one curve, also where answers are drawn on the way."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from brd.training.student import load_model

Trainings = Callable[..., list[dict[str, Any]]]

SHORT = ["distillation.prompt_tokens=5", "distillation.new_tokens=6"]
# As much of the text as of what is written.
OBJECTIVES = {"kd": [], "gkd": [*SHORT, "distillation.on_policy=0.5"], "minillm": SHORT}


@pytest.fixture
def sharp_teacher(tmp_path: Path, little_model: Path, little_tokenizer: Any) -> str:
    """One that finds some tokens likelier than others, so that there is something to learn and to draw."""
    torch.manual_seed(9)
    model = load_model(str(little_model), torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "teacher")
    little_tokenizer.save_pretrained(tmp_path / "teacher")
    return f"distillation.teacher_model={tmp_path / 'teacher'}"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_curve_is_the_same_by_any_number_of_processes(
    trainings: Trainings, tmp_path: Path, sharp_teacher: str, objective: str
) -> None:
    if objective == "gkd":
        pytest.importorskip("trl")
    keys = [f"training.objective={objective}", sharp_teacher, *OBJECTIVES[objective]]
    ways: list[dict[str, Any]] = [
        {"processes": 1, "set": ["training.micro_rows=4"]},
        {"processes": 2, "set": ["training.micro_rows=1"]},
    ]
    if objective == "minillm":
        # The one that calls the student most.
        ways += [{"processes": 2, "set": ["training.micro_rows=2", "training.parallel=fsdp"]}]
    each = [{**way, "set": [*keys, *way["set"]], "folder": f"way{n}", "uneven": True} for n, way in enumerate(ways)]
    found = trainings(8, *each, divergence=None)
    for way, one in zip(ways, found, strict=True):
        assert one["codes"] == [0] * way["processes"], one["errors"]
        assert one["result"]["loss"] == objective
        assert [step for step, _ in one["told"]] == list(range(1, 9))
        assert [loss for _, loss in one["told"]] == pytest.approx([loss for _, loss in found[0]["told"]], rel=1e-5), way
    expected = load_model(str(tmp_path / "way0"), torch.float32).state_dict()
    for number in range(1, len(ways)):
        ours = load_model(str(tmp_path / f"way{number}"), torch.float32).state_dict()
        for name, tensor in expected.items():
            torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-4)


def test_what_is_drawn_after_a_kill_is_what_would_have_been(trainings: Trainings, sharp_teacher: str) -> None:
    pytest.importorskip("trl")
    keys = ["training.objective=gkd", sharp_teacher, *OBJECTIVES["gkd"], "training.save_steps=2"]
    killed = {"set": keys, "signal": int(signal.SIGKILL), "end": "step 3"}
    found = trainings(
        6,
        {"folder": "whole", "set": keys},
        {"folder": "one", **killed},
        {"folder": "one", "set": keys},
        {"folder": "two", **killed},
        {"folder": "two", "set": keys, "processes": 2},
    )
    assert [one["codes"] for one in found] == [[0], [-9], [0], [-9], [0, 0]], [one["errors"] for one in found]
    whole = found[0]["told"]
    # By one process bit for bit.
    assert found[2]["told"] == whole[2:]
    assert [loss for _, loss in found[4]["told"]] == pytest.approx([loss for _, loss in whole[2:]], rel=1e-5)
