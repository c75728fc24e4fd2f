"""Tokens of all sentences from those of a sample, and what they cost."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from brd.sections.teacher import Prices, TokenPrices

_Z = 1.96
_MILLION = 1_000_000


def mean_at(lengths: Sequence[int], values: Sequence[float], length: float) -> tuple[float, float]:
    """The mean of ``values`` where sentences have ``length`` characters on average (by a line through the sample), and
    its standard error."""
    n = len(values)
    mean, middle = statistics.fmean(values), statistics.fmean(lengths)
    spread = sum((x - middle) ** 2 for x in lengths)
    if n < 3 or not spread:
        return mean, 0.0
    slope = sum((x - middle) * (y - mean) for x, y in zip(lengths, values, strict=True)) / spread
    left = [y - mean - slope * (x - middle) for x, y in zip(lengths, values, strict=True)]
    error = math.sqrt(sum(e * e for e in left) / (n - 2) * (1 / n + (length - middle) ** 2 / spread))
    return max(0.0, mean + slope * (length - middle)), error


def priced(prices: Prices, tokens: dict[str, float]) -> dict[str, Any]:
    """What ``input`` tokens (of which ``cached`` in the cache) and ``output`` tokens cost, also by the batch interface
    where the recipe has its prices. ``off`` is the 95 % margin of ``output_error``."""
    found: dict[str, Any] = {"currency": prices.currency, **_at(prices, tokens)}
    if isinstance(prices.batch, TokenPrices):
        found["batch"] = _at(prices.batch, tokens)
    elif prices.batch is not None:
        found["batch"] = {key: value * prices.batch for key, value in _at(prices, tokens).items()}
    return found


def _at(prices: TokenPrices, tokens: dict[str, float]) -> dict[str, float]:
    cached = prices.input if prices.cached_input is None else prices.cached_input
    into = ((tokens["input"] - tokens["cached"]) * prices.input + tokens["cached"] * cached) / _MILLION
    out = tokens["output"] * prices.output / _MILLION
    return {
        "input": into,
        "output": out,
        "total": into + out,
        "off": _Z * tokens["output_error"] * prices.output / _MILLION,
    }
