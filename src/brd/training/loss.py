"""Next-token cross-entropy that never holds the logits of all positions.

The logits of a chunk of positions are made, turned into the gradients of the hidden states and of the output
embedding, and let go, all in the forward pass: no product is done twice, and memory is one chunk's instead of the
batch's. After Liger Kernel's fused linear cross-entropy (Hsu et al. 2024, arXiv:2410.10989) and Cut Cross-Entropy
(Wijmans et al. 2024, arXiv:2411.09009), in plain PyTorch.
"""

from collections.abc import Callable
from typing import Any

import torch

# As ``torch.nn.functional.cross_entropy`` and transformers have it.
IGNORED = -100

# Positions of a chunk. Fewer add up the output embedding's gradient more often, more hold more logits.
CHUNK = 512


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, count: torch.Tensor, chunk: int
    ) -> torch.Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        states, table = hidden.detach().to(dtype), weight.detach().to(dtype)
        hidden_gradient = torch.empty_like(states) if wants_hidden else None
        # Summed in float32: 16 bits would lose the later chunks of a sum.
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(targets), chunk):
            part, wanted = states[start : start + chunk], targets[start : start + chunk, None]
            logs = torch.log_softmax(part @ table.T, -1, dtype=torch.float32)
            total -= logs.gather(1, wanted).sum()
            if hidden_gradient is None and weight_gradient is None:
                continue
            # The gradient of the sum by the logits: probabilities, less one at the target.
            by_logits = logs.exp_().scatter_add_(1, wanted, logs.new_full(wanted.shape, -1.0)).to(dtype)
            del logs
            if hidden_gradient is not None:
                torch.mm(by_logits, table, out=hidden_gradient[start : start + chunk])
            if weight_gradient is not None:
                if dtype == torch.float32:
                    weight_gradient.addmm_(by_logits.T, part)
                else:
                    weight_gradient += by_logits.T @ part
        ctx.gradients = hidden_gradient, weight_gradient
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.count = count
        return total / count

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scale = upstream[0] / ctx.count
        gradients = ctx.gradients
        # Scaled in place and handed over, not copied: a second backward pass finds none and fails.
        del ctx.gradients
        scaled = [
            None if gradient is None else gradient.to(dtype).mul_(scale)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None)


def chunked_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    count: torch.Tensor | int | None = None,
    chunk: int = CHUNK,
) -> torch.Tensor:
    """The mean of ``-log softmax(hidden @ weight.T)[target]`` over the targets that are not ``IGNORED``.

    ``hidden`` [N, H], ``weight`` [V, H], ``targets`` [N]; the loss is a float32 scalar in nats. ``count`` divides the
    sum instead of the number of targets where a batch is a part of a greater one. Products are taken in the autocast
    dtype (the hidden states' without autocast), log-softmax in float32.
    """
    kept = (targets != IGNORED).nonzero().squeeze(1)
    if len(kept) < len(targets):
        hidden, targets = hidden[kept], targets[kept]
    divisor = torch.as_tensor(len(kept) if count is None else count, dtype=torch.float32, device=hidden.device)
    result: torch.Tensor = _ChunkedCrossEntropy.apply(hidden, weight, targets, divisor, chunk)  # type: ignore[no-untyped-call]
    return result


def in_head(
    model: Any, hidden: torch.Tensor, use: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """``use(hidden, weight)`` of the output embedding's weight [V, H], in the place of its product.

    Taken as the forward pass of the output embedding, since where weights are sharded it is a module's call that
    gathers them, and its end that lets them go.
    """
    head = model.get_output_embeddings()
    head.forward = lambda states: use(states, head.weight)
    try:
        result: torch.Tensor = head(hidden)
    finally:
        del head.forward
    return result


def chunked_causal_loss(
    model: Any, ids: torch.Tensor, labels: torch.Tensor, count: torch.Tensor | int | None = None, **inputs: torch.Tensor
) -> torch.Tensor:
    """A causal LM's loss by chunks: each position predicts the next label. ``ids`` and ``labels`` [rows, tokens];
    further ``inputs`` are the decoder's.

    Only for a model that ``can_be_chunked``.
    """
    hidden = model.get_decoder()(input_ids=ids, **inputs).last_hidden_state
    targets = labels[:, 1:].flatten()
    return in_head(
        model,
        hidden[:, :-1].flatten(0, 1),
        lambda states, weight: chunked_cross_entropy(states, weight, targets, count),
    )


@torch.no_grad()
def can_be_chunked(model: Any, ids: torch.Tensor) -> bool:
    """Whether the model's loss is plain cross-entropy of a plain product, found by a run on ``ids`` [rows, tokens].

    No bias, no other layer in the head's place, no scaling or capping before or after it, no further term of the loss.
    Asked without autocast, in the weights' own dtype.
    """
    try:
        head, decoder = model.get_output_embeddings(), model.get_decoder()
    except (AttributeError, NotImplementedError):
        return False
    if type(head) is not torch.nn.Linear or head.bias is not None or decoder is model:
        return False
    ids = ids.to(head.weight.device)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = head.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    training = model.training
    model.eval()
    try:
        own = model(input_ids=ids, labels=ids)
        hidden = getattr(decoder(input_ids=ids), "last_hidden_state", None)
        if len(seen) != 1 or hidden is None or own.logits is None or hidden.shape != seen[0][0].shape:
            return False
        # Bit by bit, since capping hardly moves the small logits of a model that is not trained yet.
        plain = torch.equal(own.logits, seen[0][1]) and torch.allclose(hidden, seen[0][0], rtol=1e-4, atol=1e-6)
        return plain and torch.allclose(own.loss.float(), chunked_causal_loss(model, ids, ids), rtol=1e-4)
    finally:
        hook.remove()
        model.train(training)
