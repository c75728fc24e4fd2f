"""The processes that train together, from within one of them: who it is, and what all have to agree on."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from brd.errors import BrdError

T = TypeVar("T")


def count() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if count() > 1 else 0


def is_main() -> bool:
    """Whether this is the one that writes and reports."""
    return rank() == 0


def from_main(work: Callable[[], T]) -> T:
    """What ``work`` gives in the main process, in all; its BrdError, and that of a failing disk, is raised in all."""
    if count() == 1:
        return work()
    box: list[Any] = [None, None]
    if is_main():
        try:
            box[0] = work()
        except (BrdError, OSError) as error:
            box[1] = error
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    result: T = box[0]
    return result


def total(value: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes."""
    if count() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def gathered(value: Any) -> list[Any]:
    """Each process's value, by rank."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    return found
