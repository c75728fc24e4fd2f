"""What watches a training from within: its losses, who asks it to stop, and the loss on held-out text."""

import signal
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from brd.composing.packing import TokenRows
from brd.errors import BrdError
from brd.training import checkpoints, processes
from brd.training.objective import Objective, label_count

# The key of the line that ``watch``'s ending leaves in the Trainer's log, which is a part of every checkpoint.
WATCHED_END = "ended_by_watch"

# Steps in a row that a loss is too high in before training is stopped, and those that it is compared with.
HIGH_STEPS = 10
MEDIAN_STEPS = 100
# A median of fewer says nothing yet.
_LEAST_BEFORE = 5
# Where losses are small, batches differ by more than a factor: a loss is never too high by less than so many nats.
LEAST_RISE = 1.0
# Lines of the log, of which a step may have several.
_LOOKED_BACK = 4 * (MEDIAN_STEPS + HIGH_STEPS)


class Losses(TrainerCallback):
    """Tells (step, loss), and stops a training whose loss is no number or has diverged, before that is saved.

    ``rate`` is the key and value that is to be lowered then. Diverged is a loss of more than ``factor`` times the
    median of the last ``MEDIAN_STEPS`` that were not so high, for ``HIGH_STEPS`` steps in a row; never where ``factor``
    is None. While the loss is that high no checkpoint is written, so that the last one is from before the rise.
    """

    def __init__(self, rate: str, factor: float | None, on_step: Callable[[int, float], None] | None) -> None:
        self._rate, self._factor, self._on_step = rate, factor, on_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        loss, step, advice = logs["loss"], state.global_step, f"lower {self._rate}, with which training begins anew"
        if not np.isfinite(loss):
            raise BrdError(f"training: the loss is {loss} at step {step}; {advice}; {_kept(args)}")
        if not np.isfinite(logs.get("grad_norm", 0.0)):
            raise BrdError(f"training: the gradients are no numbers at step {step}; {advice}; {_kept(args)}")
        if self._on_step:
            self._on_step(step, loss)
        high = self._factor is not None and high_steps(
            [entry["loss"] for entry in state.log_history[-_LOOKED_BACK:] if "loss" in entry], self._factor
        )
        if high:
            control.should_save = False
        if high >= HIGH_STEPS:
            raise BrdError(
                f"training: the loss is {loss:.3g} at step {step}, and has been more than {self._factor:g} times its "
                f"median before for {high} steps; {advice}, or raise training.divergence, with which it goes on; "
                f"{_kept(args)}"
            )


def _kept(args: Any) -> str:
    before = checkpoints.last(Path(args.output_dir))
    return f"the last good checkpoint is kept ({before})" if before else "there is no checkpoint yet"


def high_steps(losses: list[float], factor: float) -> int:
    """How many losses at the end are too high for those before them."""
    recent = losses[-(MEDIAN_STEPS + HIGH_STEPS) :]
    for high in range(min(HIGH_STEPS, len(recent) - _LEAST_BEFORE), 0, -1):
        before = statistics.median(recent[:-high][-MEDIAN_STEPS:])
        if min(recent[-high:]) > max(factor * before, before + LEAST_RISE):
            return high
    return 0


class Watch(TrainerCallback):
    """Shows ``watch`` the model every so many steps, and ends training where it says so."""

    def __init__(self, watch: Callable[[Any, int], bool], every: int) -> None:
        self._watch, self._every = watch, every

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step % self._every:
            return
        with evaluating(model):
            end = self._watch(model, state.global_step)
        # Processes on different devices may differ in the last bit, and must not in what they do.
        if processes.from_main(lambda: end):
            state.log_history.append({WATCHED_END: state.global_step})
            control.should_save = control.should_training_stop = True


class HeldOut(TrainerCallback):
    """Tells (step, mean loss per token of held-out text in nats) every so many steps, and at the last one."""

    def __init__(
        self, rows: TokenRows, every: int, objective: Objective, tell: Callable[[int, float], None] | None
    ) -> None:
        self._rows, self._every, self._objective, self._tell = rows, every, objective, tell

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step % self._every and state.global_step != state.max_steps:
            return
        loss = held_out_loss(model, self._rows, self._objective, args.device)
        state.log_history.append({"held_out_loss": loss, "step": state.global_step})
        # A model that gives no number any more is the training loss's to report.
        if self._tell and np.isfinite(loss):
            self._tell(state.global_step, loss)


@torch.no_grad()
def held_out_loss(model: Any, rows: TokenRows, objective: Objective, device: torch.device) -> float:
    """The mean loss per token over all rows, of which each process takes its share."""
    share, rank = processes.count(), processes.rank()
    sums = torch.zeros(2, dtype=torch.float64)
    with evaluating(model):
        # All go through equally many batches: a wrapped model waits for the others in each.
        for start in range(0, len(rows), share):
            mine = start + rank
            ids = torch.from_numpy(rows[min(mine, len(rows) - 1)])[None].to(device)
            count = label_count(ids)
            loss = model(input_ids=ids, labels=ids, objective=objective, label_count=count)
            if mine < len(rows):
                sums += torch.tensor([float(loss) * int(count), int(count)], dtype=torch.float64)
    # Summed as float32 where the devices know no other.
    lost, tokens = processes.total(sums.float().to(device)).tolist()
    return float(lost / tokens)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model in eval mode, without gradients."""
    from torch.distributed.fsdp import FSDPModule

    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
        # Weights that are gathered for a forward pass are otherwise let go in the backward pass.
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


class Interruption(TrainerCallback):
    """Ctrl-C or SIGTERM during training: finish the step in hand, save a checkpoint, stop. A second one stops at once.

    Several processes stop at the same step: it is ``agreed`` on with the count of its label tokens.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.asked = self.agreed = False

    def ask(self, number: int, *_: Any) -> None:
        self.asked = True
        for each in self._SIGNALS:
            signal.signal(each, signal.default_int_handler)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.agreed or (self.asked and processes.count() == 1):
            self.agreed = control.should_save = control.should_training_stop = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        # Only the main thread may set handlers; elsewhere whoever runs the thread decides.
        main = threading.current_thread() is threading.main_thread()
        before = {each: signal.signal(each, self.ask) for each in self._SIGNALS} if main else {}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
