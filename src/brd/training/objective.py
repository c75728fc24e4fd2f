"""What a student is trained to lower: the plug point for the loss, and the plain loss of the paper."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from brd.training.documents import beside_ids
from brd.training.loss import IGNORED, chunked_causal_loss


class Objective(Protocol):
    """A loss of a batch.

    It is taken inside the forward pass of the wrapped model, hence under autocast, with whole weights where these are
    sharded, and with gradients that are gathered from all processes. ``model`` is the student itself: its parts may be
    called (``get_decoder()``; the output embedding by ``in_head``) and so may ``model(...)``. ``batch`` holds
    ``input_ids`` and ``labels`` [rows, tokens] (not shifted; ``IGNORED`` where nothing is to be learnt) and whatever
    else the rows bring along. ``count``, a scalar, is the number of label tokens (those that are predicted: the first
    of a row is not) of the whole step, over all of its batches in all processes.

    Returns a float32 scalar: the sum over the label tokens of ``batch`` by ``count``, so that those of all batches add
    up to the step's loss, however they are dealt out. An objective is pickled where several processes train, so what is
    large is best loaded at the first call. ``name`` stands in the results.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, model: Any, batch: Mapping[str, torch.Tensor], count: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class Method:
    """How to train by another objective than the plain one.

    ``objective`` makes it once it is known whether the student's logits can be taken by chunks (``can_be_chunked``);
    ``beside`` gives what a row brings along for it, by the row's number and its place in the order of the training.
    """

    objective: Callable[[bool], Objective]
    beside: Callable[[int, int], Mapping[str, torch.Tensor]] | None = None


class ChunkedLoss:
    """Cross-entropy of the next token without the logits of all positions; for models that ``can_be_chunked``."""

    name = "chunked"

    def __call__(self, model: Any, batch: Mapping[str, torch.Tensor], count: torch.Tensor) -> torch.Tensor:
        return chunked_causal_loss(model, batch["input_ids"], batch["labels"], count, **beside_ids(batch))


class ModelLoss:
    """The model's own loss, a mean over the batch, as a part of the step's."""

    name = "model"

    def __call__(self, model: Any, batch: Mapping[str, torch.Tensor], count: torch.Tensor) -> torch.Tensor:
        own = label_count(batch["labels"])
        output = model(**batch)
        if not own:
            # A mean over nothing is no number; the other processes wait for this one's gradients all the same.
            nothing: torch.Tensor = output.logits.float().sum() * 0.0
            return nothing
        loss: torch.Tensor = output.loss.float() * (own / count)
        return loss


def label_count(labels: torch.Tensor) -> torch.Tensor:
    """How many tokens of ``labels`` [rows, tokens] are predicted, as a scalar."""
    return labels[:, 1:].ne(IGNORED).sum()


def put_inside(model: Any) -> None:
    """Have ``model(objective=..., label_count=..., **batch)`` give that objective's loss; else it stays itself.

    Wrappers for several devices act before and after a model's forward pass, so the loss has to be taken within.
    """
    own = model.forward

    @functools.wraps(own)
    def forward(
        *arguments: Any, objective: Objective | None = None, label_count: torch.Tensor | None = None, **batch: Any
    ) -> Any:
        if objective is None or label_count is None:
            return own(*arguments, **batch)
        # An objective may call the model. What was put around this pass must not be entered twice: torch's autocast
        # would then stay on behind it.
        around, model.forward = model.forward, own
        try:
            return objective(model, batch, label_count)
        finally:
            model.forward = around

    model.forward = forward


def take_out(model: Any) -> None:
    """Undo ``put_inside``, and what accelerate put around it."""
    vars(model).pop("forward", None)
