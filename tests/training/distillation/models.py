"""Small random models for the tests of distillation."""

from typing import Any

import torch


def llama(seed: int, vocabulary: int = 40, spread: float = 6.0, **changes: Any) -> Any:
    """A Llama of two layers in float64; ``spread`` is how far its logits are apart."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings = {
        "vocab_size": vocabulary,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        **changes,
    }
    model = LlamaForCausalLM(LlamaConfig(**settings)).double()
    with torch.no_grad():
        model.lm_head.weight.normal_(0, spread / model.config.hidden_size**0.5)
    return model


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """The gradients of a model by parameter, which are taken off it."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found
