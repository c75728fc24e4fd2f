"""The relaxed setting: lessons on generic text, the teacher's answers to task inputs, lessons on these inputs."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from brd.composing.packing import encode
from brd.recipe import Recipe
from brd.sections.task_data import Part


def mixed(
    recipe: Recipe, parts: Mapping[Part, Sequence[str]], tokenizer: Any, taken: Counter[str]
) -> Iterator[list[int]]:
    """Token ids of the documents of all parts, by ``task_data.mix``, in an order drawn from the recipe's seed.

    ``taken`` is told of the documents of each part that were asked for.
    """
    drawn = random.Random(f"relaxed {recipe.seed}")
    order: list[tuple[Part, int]] = []
    for part, texts in parts.items():
        weight = recipe.task_data.weight(part)
        extra = drawn.sample(range(len(texts)), round((weight % 1) * len(texts)))
        order += [(part, n) for n in [*range(len(texts))] * int(weight) + extra]
    drawn.shuffle(order)
    stream = encode((parts[part][n] for part, n in order), tokenizer)
    for (part, _), ids in zip(order, stream, strict=True):
        taken[part] += 1
        yield ids
