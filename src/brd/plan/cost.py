"""Tokens of all that is asked from those of a sample, and what they cost."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from brd.plan.asking import Call
from brd.sections.teacher import Prices, TokenPrices

_Z = 1.96
_MILLION = 1_000_000
TOKENS = ("input", "cached", "output", "output_error")
SECONDS = ("expected", "low", "high")


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


def row(distinct: float, left: int, length: float, answers: Call, asked_now: bool, warm: Call | None) -> dict[str, Any]:
    """What is known of one question, asked about ``distinct`` sentences of which ``left`` are left, ``length``
    characters long on average; and tokens of these, by the ``answers`` of a sample. Of ``warm`` ones a server says how
    much was in its cache; None counts on none."""
    found: dict[str, Any] = {
        "known": round(distinct) - left - (len(answers) if asked_now else 0),
        "asked": len(answers),
        "to_ask": left,
    }
    if not left or not answers:
        return found
    asked = [a.characters for a in answers]
    own, _ = mean_at(asked, [a.own for a in answers], length)
    new, new_error = mean_at(asked, [a.new for a in answers], length)
    cached = sum(a.cached for a in warm) / max(1, sum(a.prompt for a in warm)) if warm else 0.0
    # None of a server, whose own tokens are the whole prompt's.
    prefix = answers[0].prompt - answers[0].own
    tokens = (left * own + prefix, left * own * cached, left * new, left * new_error)
    found["prefix_tokens"] = prefix
    found["tokens"] = {key: round(value) for key, value in zip(TOKENS, tokens, strict=True)}
    return found


def prices(told: Prices | None, rows: Iterable[Mapping[str, Any]], sample: Call) -> dict[str, Any] | None:
    """What the tokens of all rows cost, and those that a ``sample`` took; None where nobody knows prices."""
    if told is None:
        return None
    tokens = [row["tokens"] for row in rows if "tokens" in row]
    took = (sum(a.prompt for a in sample), sum(a.cached for a in sample), sum(a.new for a in sample), 0.0)
    found = priced(told, {key: sum(each[key] for each in tokens) for key in TOKENS})
    return {**found, "sample": _at(told, dict(zip(TOKENS, took, strict=True)))["total"]}


def priced(prices: Prices, tokens: Mapping[str, float]) -> dict[str, Any]:
    """What ``input`` tokens (of which ``cached`` in the cache) and ``output`` tokens cost, also by the batch interface
    where the recipe has its prices. ``off`` is the 95 % margin of ``output_error``."""
    found: dict[str, Any] = {"currency": prices.currency, **_at(prices, tokens)}
    if isinstance(prices.batch, TokenPrices):
        found["batch"] = _at(prices.batch, tokens)
    elif prices.batch is not None:
        found["batch"] = {key: value * prices.batch for key, value in _at(prices, tokens).items()}
    return found


def _at(prices: TokenPrices, tokens: Mapping[str, float]) -> dict[str, float]:
    cached = prices.input if prices.cached_input is None else prices.cached_input
    into = ((tokens["input"] - tokens["cached"]) * prices.input + tokens["cached"] * cached) / _MILLION
    out = tokens["output"] * prices.output / _MILLION
    return {
        "input": into,
        "output": out,
        "total": into + out,
        "off": _Z * tokens["output_error"] * prices.output / _MILLION,
    }
