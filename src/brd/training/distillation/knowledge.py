"""Knowledge distillation (Hinton et al. 2015, arXiv:1503.02531) from a teacher's signals, the paper's SKD.

At each position, with teacher and student at temperature T and the label y of the text:

    (1 - weight) * -log q(y)  +  weight * T^2 * KL(p_T || q_T)

taken over what is kept of p_T (see ``signals.py``). With drawn tokens the second term is

    sum_i p_i (log p_i - log q_i)  -  tail / drawn * sum_j log q_j  +  constant

i over the likeliest, j over the drawn tokens, whose mean over draws is the full KL (the constant, the entropy of the
tail's shape, is left out, so the value is above or below KL by what does not change). With the tail as one bucket it is

    sum_i p_i (log p_i - log q_i)  +  tail (log tail - log q(tail))

which is the full KL less tail * KL(p within the tail || q within it): never more than the full one, and silent on how
the tail is divided, where the student keeps its own shape. The temperature is applied to the teacher's logits before
anything is kept: what a bucket's mass becomes at another temperature cannot be told from the mass.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from brd.training.distillation.chunks import CHUNK, summed_by_chunks
from brd.training.documents import beside_ids
from brd.training.loss import IGNORED


def divergence_from_kept(
    logs: torch.Tensor, ids: torch.Tensor, probabilities: torch.Tensor, tail: torch.Tensor
) -> torch.Tensor:
    """The summed divergence of the student's ``logs`` [N, V] from what is kept of the teacher: ``ids`` and
    ``probabilities`` [N, K], and ``tail`` [N], the mass of the bucket of all others."""
    there = logs.gather(1, ids)
    found = (torch.xlogy(probabilities, probabilities) - probabilities * there).sum()
    if bool((tail > 0).any()):
        rest = logs.scatter(1, ids, float("-inf")).logsumexp(1)
        # Where the bucket is empty the student's share of it does not matter.
        found = found + (torch.xlogy(tail, tail) - tail * torch.where(tail > 0, rest, 0.0)).sum()
    return found


@dataclass(frozen=True, slots=True)
class KnowledgeDistillation:
    """The objective; its batches bring along what ``signals.unpack_positions`` gives. ``plain`` as in ``chunks``.

    Only positions whose next token is a label carry a loss: none whose next token is padding or, where documents are
    kept apart, begins another document.
    """

    weight: float
    temperature: float
    plain: bool
    chunk: int = CHUNK
    name: str = "kd"

    def __call__(self, model: Any, batch: Mapping[str, torch.Tensor], count: torch.Tensor) -> torch.Tensor:
        kept = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        kept[:, :-1] = batch["labels"][:, 1:] != IGNORED
        targets = batch["labels"].roll(-1, 1)[kept]
        likely, probabilities = batch["teacher_ids"][kept], batch["teacher_probabilities"][kept]
        tail = batch["teacher_tail"][kept]

        def loss_of(logits: torch.Tensor, part: slice) -> torch.Tensor:
            total = logits.new_zeros(())
            if self.weight < 1:
                total = (1 - self.weight) * torch.nn.functional.cross_entropy(logits, targets[part], reduction="sum")
            if self.weight > 0:
                logs = torch.log_softmax(logits / self.temperature, -1)
                found = divergence_from_kept(logs, likely[part], probabilities[part], tail[part])
                total = total + self.weight * self.temperature**2 * found
            return total

        ids, plain, chunk = batch["input_ids"], self.plain, self.chunk
        return summed_by_chunks(model, ids, kept, plain, loss_of, chunk, **beside_ids(batch)) / count
