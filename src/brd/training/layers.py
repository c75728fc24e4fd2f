"""A student's transformer layers: where they are, how much each does, and the model with some of them only."""

from typing import Any

import torch

from brd import hardware
from brd.composing.packing import TokenRows
from brd.errors import BrdError
from brd.recipe import Recipe, changed


def stack(model: Any) -> tuple[Any, str, torch.nn.ModuleList] | None:
    """Where the transformer layers are: the module that has them, by which name, and they; None if there is doubt."""
    stacks = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, torch.nn.ModuleList) and len(child) == model.config.num_hidden_layers
    ]
    return stacks[0] if len(stacks) == 1 else None


def keep_layers(model: Any, keep: list[int]) -> None:
    """Cut a model to the transformer layers with these numbers, in place; the config follows.

    Raises BrdError where the config cannot say what is left, so that the saved model would be another one.
    """
    parent, name, layers = _stack_of(model, "student.layers")
    if not keep or len(set(keep)) < len(keep) or max(keep) >= len(layers):
        raise BrdError(f"student.layers: should be different numbers from 0 to {len(layers) - 1} (got {keep})")
    config = model.config
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise BrdError(
            "student.layers: this student's attention is scaled by the number of its layer "
            "(scale_attn_by_inverse_layer_idx), so its layers cannot be numbered anew; keep them all"
        )
    kept = torch.nn.ModuleList(layers[n] for n in sorted(keep))
    for number, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", number)  # noqa: B010 (mypy knows modules to hold modules only)
    setattr(parent, name, kept)
    # What a config says of each layer: the kind of its attention, whether it has rotary positions, ...
    for key, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == len(layers) and key.split("_")[-1] in ("types", "layers"):
            setattr(config, key, [value[n] for n in sorted(keep)])
    config.num_hidden_layers = len(kept)
    _check_config(model)


def _check_config(model: Any) -> None:
    """BrdError where a model made by the config would have other weights than this one."""
    with torch.device("meta"):
        again = type(model)(model.config)
    shapes = [{key: tensor.shape for key, tensor in m.state_dict().items()} for m in (model, again)]
    if shapes[0] != shapes[1]:
        raise BrdError(
            f"student.layers: the layers of this {type(model).__name__} are not alike, and its config cannot say which "
            "are left; keep them all, or only the first ones"
        )


def cut_to(recipe: Recipe, kept: list[int] | None) -> Recipe:
    """The recipe with ``student.keep_layers`` replaced by the numbers of layers ``kept``; itself where it has none.

    ``kept`` None stands for any layers, where their number is all that matters.
    """
    number = recipe.student.keep_layers
    if number is None:
        return recipe
    return changed(recipe, {"student.keep_layers": None, "student.layers": kept or list(range(number))})


def measure(recipe: Recipe, model: Any, rows: TokenRows) -> dict[str, Any]:
    """Choose the ``student.keep_layers`` layers of a whole model that do most: their numbers (``kept``), the
    ``influence`` of each layer, and the ``tokens`` that it was measured on.

    All at once, not one after another, as in ShortGPT. The paper cuts no student.
    """
    number = recipe.student.keep_layers
    layers = _stack_of(model, "student.keep_layers")[2]
    if number is None or number >= len(layers):
        raise BrdError(
            f"student.keep_layers: should be 1 to {len(layers) - 1}, fewer than the student has (got {number})"
        )
    influence = block_influence(model, rows, hardware.choose_dtype(recipe.training.dtype))
    # Of equal layers the earlier is kept.
    kept = sorted(sorted(range(len(layers)), key=lambda n: -influence[n])[:number])
    return {
        "kept": kept,
        "influence": [round(value, 6) for value in influence],
        "tokens": len(rows) * int(rows.meta["row_tokens"]),
    }


@torch.no_grad()
def block_influence(model: Any, rows: TokenRows, dtype: torch.dtype = torch.float32) -> list[float]:
    """How much each transformer layer changes what passes through it: 1 - the cosine of its input and output, averaged
    over all positions (Men et al. 2024, ShortGPT, arXiv:2403.03853, section 2.3). Autocast to ``dtype``.
    """
    layers = _stack_of(model, "student.keep_layers")[2]
    model = model.to(hardware.device()).eval()
    sums = [0.0] * len(layers)

    def hook(number: int) -> Any:
        def look(_: Any, positional: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            before = positional[0] if positional else named["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            cosine = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
            sums[number] += float((1 - cosine).sum())

        return look

    hooks = [layer.register_forward_hook(hook(n), with_kwargs=True) for n, layer in enumerate(layers)]
    try:
        for number in range(len(rows)):
            ids = torch.from_numpy(rows[number])[None].to(model.device)
            with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
                model.base_model(input_ids=ids, use_cache=False)
    finally:
        for one in hooks:
            one.remove()
    return [total / (len(rows) * rows.meta["row_tokens"]) for total in sums]


def _stack_of(model: Any, key: str) -> tuple[Any, str, torch.nn.ModuleList]:
    found = stack(model)
    if found is None:
        raise BrdError(f"{key}: cannot tell which layers of a {type(model).__name__} to keep")
    return found
