"""Teachers on a clock of their own: when answers come, by rules that are none of the planner's."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from brd.teachers.shared_prefix import JOINING_TOKENS


@dataclass(frozen=True)
class Sentence:
    """Tokens of the sentence and of its answer."""

    own: int
    new: int


def sentences(count: int, seed: int) -> list[Sentence]:
    drawn = random.Random(seed)
    return [Sentence(own, drawn.randint(2, 14) + own // 2) for own in (drawn.randint(12, 90) for _ in range(count))]


def batch(asked: Sequence[Sentence], most: int, step: Callable[[int, int], float], prefix: float) -> list[float]:
    """The shared-prefix teacher: rows join, the longest first, as others end; ``step(decoding, joining tokens)`` is
    what a step takes."""
    now = prefix
    waiting = sorted(range(len(asked)), key=lambda n: -asked[n].own)
    live: dict[int, int] = {}
    ends = [0.0] * len(asked)
    while waiting or live:
        room, joining = JOINING_TOKENS, 0
        decoding = len(live)
        for n in live:
            live[n] += 1
        while waiting and len(live) < most:
            room -= asked[waiting[0]].own
            if joining and room < 0:
                break
            joining += asked[waiting[0]].own
            live[waiting.pop(0)] = 1
        now += step(decoding, joining)
        for n in [n for n, new in live.items() if new >= asked[n].new]:
            del live[n]
            ends[n] = now
    return ends


def server(
    work: Sequence[float], limit: Callable[[int], int], speed: Callable[[int], float], cold: float = 0.0, slots: int = 0
) -> list[float]:
    """A server that works on all requests at once, each at the same pace: together ``speed(requests)`` units a second.
    ``cold`` units more for the first request of each of ``slots``."""
    now, begun, done = 0.0, 0, 0
    left: dict[int, float] = {}
    ends = [0.0] * len(work)
    while done < len(work):
        while begun < len(work) and len(left) < max(1, limit(done)):
            left[begun] = work[begun] + (cold if begun < slots else 0.0)
            begun += 1
        least = min(left.values())
        now += least * len(left) / speed(len(left))
        left = {n: rest - least for n, rest in left.items()}
        for n in [n for n, rest in left.items() if rest <= 1e-9]:
            del left[n]
            ends[n] = now
            done += 1
    return ends
