from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import gradients, llama

from brd.training.distillation.knowledge import KnowledgeDistillation, divergence_from_kept
from brd.training.distillation.signals import About, pack_positions, unpack_positions
from brd.training.loss import IGNORED

VOCABULARY = 40


def kept_of(logs: torch.Tensor, top: int) -> dict[str, torch.Tensor]:
    """The likeliest and the mass of the rest, neither rounded nor drawn."""
    values, ids = logs.topk(top, dim=-1)
    found = values.exp()
    return {"teacher_ids": ids, "teacher_probabilities": found, "teacher_tail": (1 - found.sum(-1)).clamp(min=0)}


def plain(student: Any, teacher: Any, batch: dict[str, torch.Tensor], weight: float, temperature: float) -> Any:
    """Hinton's loss by torch's own functions, with the logits of all positions; summed over what is predicted."""
    targets = batch["labels"][:, 1:].flatten()
    kept = targets != IGNORED
    logits = student(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1)[kept].float()
    with torch.no_grad():
        wanted = teacher(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1)[kept].float()
    soft = torch.nn.functional.kl_div(
        torch.log_softmax(logits / temperature, -1), torch.softmax(wanted / temperature, -1), reduction="sum"
    )
    hard = torch.nn.functional.cross_entropy(logits, targets[kept], reduction="sum")
    return (1 - weight) * hard + weight * temperature**2 * soft


def batch_of(teacher: Any, temperature: float, top: int, rows: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    ids = torch.randint(0, VOCABULARY, (rows, 11))
    labels = ids.clone()
    labels[0, 4] = labels[1, :3] = IGNORED
    with torch.no_grad():
        logs = torch.log_softmax(teacher(input_ids=ids).logits.float() / temperature, -1)
    return {"input_ids": ids, "labels": labels, **kept_of(logs, top)}


@pytest.mark.parametrize("plain_head", [True, False])
@pytest.mark.parametrize(("weight", "temperature"), [(0.5, 1.0), (1.0, 2.0), (0.3, 2.0), (0.0, 1.0)])
@pytest.mark.parametrize("chunk", [5, 512])
def test_with_all_of_the_teacher_kept_the_loss_and_its_gradients_are_the_full_ones(
    weight: float, temperature: float, chunk: int, plain_head: bool
) -> None:
    student, teacher = llama(0), llama(1)
    # All but one token: the bucket is that one, so nothing is left out.
    batch = batch_of(teacher, temperature, VOCABULARY - 1)
    expected = plain(student, teacher, batch, weight, temperature)
    expected.backward()
    wanted = gradients(student)
    found = KnowledgeDistillation(weight, temperature, plain_head, chunk)(student, batch, torch.tensor(1))
    found.backward()
    torch.testing.assert_close(found.float(), expected.float(), rtol=1e-4, atol=1e-4)
    for name, gradient in gradients(student).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-4, msg=name)


def test_the_batches_of_a_step_add_up_by_the_count_of_all() -> None:
    student, teacher = llama(0), llama(1)
    batch, objective = batch_of(teacher, 1.0, 8, rows=4), KnowledgeDistillation(0.5, 1.0, True)
    count = torch.tensor(30)
    parts = [{key: value[part] for key, value in batch.items()} for part in (slice(1), slice(1, 4))]
    total = sum(objective(student, part, count) for part in parts)
    torch.testing.assert_close(total, objective(student, batch, count))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 11), st.floats(0.1, 8))
def test_one_bucket_is_the_full_divergence_less_that_of_the_tails_shape(seed: int, top: int, spread: float) -> None:
    torch.manual_seed(seed)
    p, q = (torch.log_softmax(spread * torch.randn(1, 12, dtype=torch.float64), -1) for _ in range(2))
    kept = kept_of(p, top)
    found = divergence_from_kept(q, kept["teacher_ids"], kept["teacher_probabilities"], kept["teacher_tail"])
    tail = torch.ones(12, dtype=torch.bool)
    tail[kept["teacher_ids"][0]] = False
    shapes = [torch.log_softmax(logs[0, tail], -1) for logs in (p, q)]
    mass = float(p[0, tail].exp().sum())
    full = float((p.exp() * (p - q)).sum())
    assert float(found) == pytest.approx(
        full - mass * float((shapes[0].exp() * (shapes[0] - shapes[1])).sum()), abs=1e-6
    )
    assert -1e-9 <= float(found) <= full + 1e-9


def test_drawn_tokens_give_the_full_gradient_on_average_and_a_bucket_does_not() -> None:
    torch.manual_seed(0)
    p = torch.log_softmax(2 * torch.randn(1, 30), -1)
    logits = torch.randn(1, 30, requires_grad=True)
    full = torch.autograd.grad(-(p.exp() * torch.log_softmax(logits, -1)).sum(), logits)[0]

    def of(drawn: int) -> torch.Tensor:
        about = About({}, "", 1, 1, 30, 4, drawn, 1.0)
        kept = unpack_positions(pack_positions(p, about, torch.Generator().manual_seed(0)))
        loss = divergence_from_kept(torch.log_softmax(logits, -1), *(kept[key] for key in kept))
        return torch.autograd.grad(loss, logits)[0]

    # Rounding to bytes is off by 1/32 nat at most; so many draws by less than a hundredth.
    assert float((of(100_000) - full).abs().max()) < 0.01
    assert float((of(0) - full).abs().max()) > 0.02
