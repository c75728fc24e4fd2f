import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from brd.training.loss import IGNORED, can_be_chunked, chunked_causal_loss, chunked_cross_entropy

POSITIONS, WIDTH, VOCABULARY = 23, 8, 50
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    hidden = torch.randn(POSITIONS, WIDTH, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (POSITIONS,))
    targets[[0, 7, 22]] = IGNORED
    return hidden, weight, targets


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """As transformers computes it, with the logits of all positions."""
    logits = torch.nn.functional.linear(hidden, weight).float()
    return torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED)


@pytest.mark.parametrize("chunk", [1, 7, 20, 512])
def test_the_loss_and_its_gradients_are_cross_entropys(chunk: int) -> None:
    hidden, weight, targets = batch()
    loss = chunked_cross_entropy(hidden, weight, targets, chunk=chunk)
    (3 * loss).backward()
    again, table, _ = batch()
    expected = plain(again, table, targets)
    (3 * expected).backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(hidden.grad, again.grad)
    torch.testing.assert_close(weight.grad, table.grad)


def test_parts_of_a_batch_add_up_by_the_count_of_the_whole() -> None:
    hidden, weight, targets = batch()
    count = (targets != IGNORED).sum()
    parts = [chunked_cross_entropy(hidden[part], weight, targets[part], count) for part in (slice(9), slice(9, None))]
    torch.testing.assert_close(parts[0] + parts[1], plain(hidden, weight, targets))


def test_16_bits_under_autocast_are_as_close_as_the_plain_ones() -> None:
    hidden, weight, targets = batch()
    again, table, _ = batch()
    exact, exact_table, _ = batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss, usual = chunked_cross_entropy(hidden, weight, targets, chunk=5), plain(again, table, targets)
    truth = plain(exact, exact_table, targets)
    for value in (loss, usual, truth):
        value.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, usual, rtol=1e-5, atol=1e-6)
    for ours, theirs, true in ((hidden, again, exact), (weight, table, exact_table)):
        mine, usual_gradient, exact_gradient = (tensor.grad for tensor in (ours, theirs, true))
        assert mine.dtype == torch.float32
        assert (mine - exact_gradient).norm() <= 1.2 * (usual_gradient - exact_gradient).norm()


@pytest.mark.parametrize("frozen", [(True, False), (False, True), (True, True)])
def test_what_is_frozen_gets_no_gradient(frozen: tuple[bool, bool]) -> None:
    hidden, weight, targets = batch()
    hidden.requires_grad_(not frozen[0])
    weight.requires_grad_(not frozen[1])
    loss = chunked_cross_entropy(hidden, weight, targets, chunk=5)
    torch.testing.assert_close(loss, plain(hidden, weight, targets))
    assert loss.requires_grad == (not all(frozen))
    if loss.requires_grad:
        loss.backward()
    assert (hidden.grad is None, weight.grad is None) == frozen


def test_a_batch_of_ignored_targets_alone_has_no_loss() -> None:
    hidden, weight, targets = batch()
    assert math.isnan(chunked_cross_entropy(hidden, weight, torch.full_like(targets, IGNORED)).item())


def test_no_tensor_holds_the_logits_of_more_than_a_chunk() -> None:
    sizes: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                sizes.append(result.numel())
            return result

    hidden, weight, targets = batch()
    with Sizes():
        chunked_cross_entropy(hidden, weight, targets, chunk=4).backward()
    # The table itself, in the dtype of the products, is larger than four positions' logits.
    assert max(sizes) == max(4 * VOCABULARY, WIDTH * VOCABULARY) < POSITIONS * VOCABULARY


def model(kind: str, **settings: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **settings})
    return getattr(transformers, f"{kind}ForCausalLM")(config).train()


IDS = torch.arange(24).reshape(2, 12) + 3


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Llama", {}),
        ("Llama", {"tie_word_embeddings": True}),
        ("Qwen2", {}),
        ("Gemma2", {"final_logit_softcapping": None}),
        ("Cohere", {"logit_scale": 1.0}),
    ],
)
def test_a_plain_heads_loss_is_the_models_own(kind: str, settings: dict[str, Any]) -> None:
    student = model(kind, **settings)
    assert can_be_chunked(student, IDS)
    assert student.training
    ours, own = chunked_causal_loss(student, IDS, IDS), student(input_ids=IDS, labels=IDS).loss
    torch.testing.assert_close(ours, own)
    gradients = [torch.autograd.grad(loss, list(student.parameters())) for loss in (ours, own)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Gemma2", {}),  # capped logits, which are too small here for the cap to move the loss
        ("Cohere", {}),  # scaled logits
        ("Granite", {"logits_scaling": 8.0}),
        ("Phi", {}),  # a head with a bias
        ("Mixtral", {"output_router_logits": True}),  # a further term of the loss
    ],
)
def test_other_losses_are_left_to_the_model(kind: str, settings: dict[str, Any]) -> None:
    assert not can_be_chunked(model(kind, **settings), IDS)


def test_a_head_of_another_class_is_left_to_the_model() -> None:
    class Adapted(torch.nn.Linear):
        pass

    student = model("Llama")
    student.lm_head = Adapted(16, 64, bias=False)
    assert not can_be_chunked(student, IDS)
