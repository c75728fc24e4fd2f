"""What stops a training by itself: a loss that is no number, or one that runs away."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brd.errors import BrdError
from brd.training.callbacks import HIGH_STEPS, high_steps
from brd.training.checkpoints import last


def test_a_loss_that_runs_away_is_found_after_some_steps() -> None:
    good = [3.0 + 0.1 * math.sin(n) for n in range(50)]
    for high in range(HIGH_STEPS):
        assert high_steps(good + [9.0] * high, 2.0) == high
    assert high_steps(good + [9.0] * HIGH_STEPS, 2.0) == HIGH_STEPS
    # What is as high from the start on is no rise, and a single batch is none that lasts.
    assert high_steps([9.0] * 50, 2.0) == 0
    assert high_steps([*good, 9.0, 9.0, 3.0], 2.0) == 0
    # An easy batch to begin with is no measure.
    assert high_steps([0.5, *[3.0] * 12], 2.0) == 0


@given(st.integers(0, 10_000), st.floats(0.01, 12.0), st.floats(0.0, 0.35))
def test_normal_noise_stops_nothing(seed: int, level: float, spread: float) -> None:
    drawn = random.Random(seed)
    # Falling over time, each batch off by a normal share of it: a spread of 0.35 is far more than batches have.
    losses = [level * (1 + 2 * math.exp(-n / 30)) * math.exp(drawn.gauss(0, spread)) for n in range(300)]
    assert all(high_steps(losses[:n], 2.0) < HIGH_STEPS for n in range(1, 301))


def test_a_rate_that_is_too_high_stops_with_the_last_good_checkpoint(train_small: Any, tmp_path: Path) -> None:
    train_small(150, "training.learning_rate=0.03", "training.save_steps=1000", name="learnt")
    losses: dict[int, float] = {}
    with pytest.raises(BrdError, match=r"the loss is .* for 10 steps; lower training.learning_rate \(1") as error:
        train_small(
            300,
            *("training.learning_rate=1", "training.warmup=0.9", "training.schedule=constant", "training.save_steps=2"),
            start=tmp_path / "learnt",
            on_step=losses.__setitem__,
        )
    kept = last(tmp_path / "student.checkpoints")
    assert kept is not None
    assert f"or raise training.divergence, with which it goes on; the last good checkpoint is kept ({kept})" in str(
        error.value
    )
    # From before the rise, though a checkpoint was due at every other step.
    step, told = int(kept.name.removeprefix("checkpoint-")), [losses[n] for n in sorted(losses)]
    assert step == max(n for n in range(2, len(told) + 1, 2) if not high_steps(told[:n], 2.0))
    assert step <= len(told) - HIGH_STEPS
    assert losses[step] < min(losses[n] for n in range(step + 1, max(losses) + 1))


def test_a_reporter_that_is_not_installed_is_named(train_small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import util

    plain = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == "wandb" else plain(name, *rest))
    with pytest.raises(BrdError, match=r"^training\.report_to: wandb is not installed; `pip install wandb`, or"):
        train_small(1, "training.report_to=wandb")


def test_held_out_text_is_looked_at(train_small: Any, tmp_path: Path) -> None:
    looks: list[tuple[int, float]] = []
    # Dropout shows whether the model is trained as before once it was looked at.
    result = train_small(
        6,
        *("training.evaluate_steps=4", "student.dropout=0.3"),
        held_out=tmp_path / "tokens",
        on_held_out=lambda step, loss: looks.append((step, loss)),
    )
    assert [step for step, _ in looks] == [4, 6]
    assert looks[1][1] < looks[0][1] < result["losses"][0][1]
    # A look changes nothing.
    assert train_small(6, "student.dropout=0.3", name="unseen") == result


def test_activations_made_anew_give_the_same_curve(train_small: Any) -> None:
    plain = train_small(4, name="plain")
    assert train_small(4, "training.activation_checkpointing=true", name="anew")["losses"] == plain["losses"]
    both = train_small(4, "training.activation_checkpointing=true", "training.compile=true", name="both")
    assert [loss for _, loss in both["losses"]] == pytest.approx([loss for _, loss in plain["losses"]], rel=1e-4)
