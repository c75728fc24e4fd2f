"""Summaries: figures worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brd.errors import BrdError
from brd.evaluation.scoring import CandidateScore, ItemScores
from brd.evaluation.statistics import macro_average, summarize


def scored(gold: int, best: int, candidates: int = 3, truncated: int = 0) -> ItemScores:
    """An item whose best candidate is ``best``."""
    texts = tuple(CandidateScore(f" {n}", 0.0 if n == best else -1.0, 1, 1, 1) for n in range(candidates))
    return ItemScores(f"t/{gold}{best}", gold, texts, truncated)


def test_a_summary_by_hand() -> None:
    scores = [scored(0, 0), scored(0, 1), scored(1, 1, truncated=5), scored(0, 0), scored(2, 0), scored(1, 0)]
    summary = summarize("mood", scores)
    assert (summary.task, summary.metric, summary.n) == ("mood", "token_mean", 6)
    assert summary.accuracy == pytest.approx(1 / 2)
    assert summary.standard_error == pytest.approx((0.5 * 0.5 / 6) ** 0.5)
    assert summary.majority == pytest.approx(1 / 2)
    assert summary.predicted == (4, 2, 0)
    assert summary.gold == (3, 2, 1)
    assert summary.truncated == 1


def test_the_metric_decides() -> None:
    candidates = (CandidateScore(" a b", -3.0, 2, 3, 3), CandidateScore(" c", -2.0, 1, 1, 1))
    scores = [ItemScores("t/0", 0, candidates, 0)]
    assert summarize("t", scores).accuracy == 1.0
    assert summarize("t", scores, "sum").accuracy == 0.0


def test_each_task_counts_the_same() -> None:
    small = summarize("small", [scored(0, 0)])
    large = summarize("large", [scored(0, 1)] * 9)
    assert macro_average([small, large]) == pytest.approx(0.5)


def test_nothing_scored_is_an_error() -> None:
    with pytest.raises(BrdError, match="task mood: no items"):
        summarize("mood", [])
    with pytest.raises(BrdError, match="no tasks"):
        macro_average([])


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_counts_add_up(pairs: list[tuple[int, int]]) -> None:
    summary = summarize("t", [scored(gold, best) for gold, best in pairs])
    assert sum(summary.predicted) == sum(summary.gold) == summary.n == len(pairs)
    assert 1 / 3 <= summary.majority <= 1
    assert 0 <= summary.standard_error <= 0.5
