"""Losses over the whole vocabulary that never hold the logits of all positions.

As ``training/loss.py`` has it for cross-entropy, for any loss: the logits of a chunk of positions are made, turned into
the gradients of the hidden states and of the output embedding, and let go, all in the forward pass. What the loss
makes of the logits of a chunk is left to autograd.
"""

from collections.abc import Callable
from typing import Any

import torch

from brd.training.loss import in_head

# Fewer than cross-entropy's, since some losses hold several arrays of a chunk's size.
CHUNK = 256

LossOf = Callable[[torch.Tensor, slice], torch.Tensor]
"""The summed loss of logits [n, V] (float32), the ``slice`` of all positions."""


class _ByChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor, loss_of: LossOf, chunk: int) -> torch.Tensor:
        kind = states.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
        wants_states, wants_weight = ctx.needs_input_grad[:2]
        hidden, table = states.detach().to(dtype), weight.detach().to(dtype)
        by_states = torch.empty_like(hidden) if wants_states else None
        # Summed in float32: 16 bits would lose the later chunks of a sum.
        by_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        with torch.autocast(kind, enabled=False):
            for start in range(0, len(hidden), chunk):
                part = hidden[start : start + chunk]
                logits = (part @ table.T).float()
                with torch.enable_grad():
                    logits.requires_grad_()
                    loss = loss_of(logits, slice(start, start + len(part)))
                total += loss.detach()
                if by_states is None and by_weight is None:
                    continue
                by_logits = torch.autograd.grad(loss, logits)[0].to(dtype)
                del logits, loss
                if by_states is not None:
                    torch.mm(by_logits, table, out=by_states[start : start + chunk])
                if by_weight is not None:
                    by_weight += by_logits.T @ part
        ctx.gradients, ctx.dtypes = (by_states, by_weight), (states.dtype, weight.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients = ctx.gradients
        del ctx.gradients
        scaled = [
            None if gradient is None else gradient.to(dtype).mul_(upstream[0])
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None)


def summed_by_chunks(
    model: Any,
    ids: torch.Tensor,
    kept: torch.Tensor,
    plain: bool,
    loss_of: LossOf,
    chunk: int = CHUNK,
    **inputs: torch.Tensor,
) -> torch.Tensor:
    """The sum of ``loss_of`` over the positions of ``ids`` [rows, tokens] where ``kept`` (bool, the same shape) is.

    Positions are counted row by row, those that are not kept left out. ``plain`` says that the model's logits are a
    plain product (``can_be_chunked``); otherwise all its logits are held. Further ``inputs`` are the model's.
    """
    if plain:
        hidden = model.get_decoder()(input_ids=ids, **inputs, use_cache=False).last_hidden_state[kept]
        return in_head(model, hidden, lambda states, weight: _by_chunks(states, weight, loss_of, chunk))
    logits = model(input_ids=ids, **inputs, use_cache=False).logits[kept].float()
    parts = [loss_of(logits[at : at + chunk], slice(at, at + chunk)) for at in range(0, len(logits), chunk)]
    return torch.stack(parts).sum() if parts else logits.sum() * 0.0


def _by_chunks(states: torch.Tensor, weight: torch.Tensor, loss_of: LossOf, chunk: int) -> torch.Tensor:
    result: torch.Tensor = _ByChunks.apply(states, weight, loss_of, chunk)  # type: ignore[no-untyped-call]
    return result
