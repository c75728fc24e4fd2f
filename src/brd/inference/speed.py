"""How long a model's linear layers take in each dtype on this processor: measured once, then kept."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from brd import hardware, remembered
from brd.inference.int8_linear import Int8Linear
from brd.inference.packed_linear import PackedLinear

# Tokens of a step of the in-process teacher: some 128 rows that go on, and the suffixes of those that join.
ROWS = 256
# Each dtype is measured for so long, in seconds, and twice at least.
PATIENCE = 0.15

Layers = list[list[int]]
"""How many linear layers of each shape a model has: ``[in, out, number]``."""


def layers_of(model: nn.Module) -> Layers:
    """The linear layers of a model that ``int8_linear.quantise`` replaces, or has replaced: all but the one that gives
    the logits."""
    embeddings = getattr(model, "get_output_embeddings", None)
    head = embeddings() if embeddings else None
    shapes: Counter[tuple[int, int]] = Counter()
    for layer in model.modules():
        if isinstance(layer, Int8Linear):
            shapes[layer.weight.shape[0], layer.weight.shape[1]] += 1
        elif type(layer) is nn.Linear and layer is not head:
            shapes[layer.in_features, layer.out_features] += 1
    return [[*shape, number] for shape, number in sorted(shapes.items())]


def linear_seconds(layers: Layers) -> dict[str, float]:
    """Seconds that all ``layers`` take for ``ROWS`` tokens, by dtype: float32, bfloat16, int8 (quantising included).

    On the CPU, with weights packed as the teacher packs them. Kept by processor, instruction set, threads, version of
    torch and shapes; on a machine where that was not measured yet it takes a second or two.
    """
    about = {"layers": layers, "rows": ROWS, **hardware.processor()}
    names = ("float32", "bfloat16", "int8")
    found = remembered.recall("speed", about)
    if found is None or not all(isinstance(found.get(name), float) and found[name] > 0 for name in names):
        found = _measured(layers)
        remembered.keep("speed", about, found)
    return {name: float(found[name]) for name in names}


@torch.inference_mode()
def _measured(layers: Layers) -> dict[str, float]:
    fast = hardware.fast_dtype()
    total = {"float32": 0.0, "bfloat16": 0.0, "int8": 0.0}
    for width, out, number in layers:
        plain = nn.Linear(width, out, bias=False)
        rows = torch.randn(ROWS, width)
        coarse = nn.Linear(width, out, bias=False).bfloat16()
        packed = PackedLinear(nn.ModuleList([plain, coarse]))
        int8 = Int8Linear(plain)
        asked = {
            "float32": partial(plain, rows),
            "bfloat16": partial(coarse, rows.bfloat16()),
            "int8": partial(int8, rows.to(fast)),
        }
        with packed.in_use():
            for name, seconds in _in_turn(asked).items():
                total[name] += number * seconds
    return total


def _in_turn(asked: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The median seconds of each call. They take turns, so that a busy moment of the machine falls on all of them."""
    times: dict[str, list[float]] = {name: [] for name in asked}
    for call in asked.values():
        call()
    spent = dict.fromkeys(asked, 0.0)
    while waiting := [name for name in asked if spent[name] < PATIENCE or len(times[name]) < 2]:
        for name in waiting:
            start = time.perf_counter()
            asked[name]()
            times[name].append(time.perf_counter() - start)
            spent[name] += times[name][-1]
    return {name: sorted(found)[len(found) // 2] for name, found in times.items()}
