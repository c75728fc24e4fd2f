"""From scores to the figures that are reported: accuracy with its standard error, beside the trivial baselines."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from brd.errors import BrdError
from brd.evaluation.scoring import ItemScores, Metric


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """A task's result under one metric; all shares lie between 0 and 1.

    ``standard_error`` is the binomial sqrt(p (1 - p) / n). ``majority`` is the share of the commonest gold index:
    what always giving that answer would score. ``predicted`` and ``gold`` count items by candidate index.
    ``truncated`` counts items whose context was cut to the model's window.
    """

    task: str
    metric: Metric
    n: int
    accuracy: float
    standard_error: float
    majority: float
    predicted: tuple[int, ...]
    gold: tuple[int, ...]
    truncated: int


def summarize(task: str, scores: Sequence[ItemScores], metric: Metric = "token_mean") -> TaskSummary:
    """Summary of one task's scores. Raises BrdError when there are none."""
    if not scores:
        raise BrdError(f"task {task}: no items were scored")
    n = len(scores)
    width = max(len(score.candidates) for score in scores)
    predicted, gold = [0] * width, [0] * width
    correct = 0
    for score in scores:
        prediction = score.prediction(metric)
        predicted[prediction] += 1
        gold[score.gold] += 1
        correct += prediction == score.gold
    accuracy = correct / n
    return TaskSummary(
        task=task,
        metric=metric,
        n=n,
        accuracy=accuracy,
        standard_error=math.sqrt(accuracy * (1 - accuracy) / n),
        majority=max(gold) / n,
        predicted=tuple(predicted),
        gold=tuple(gold),
        truncated=sum(score.truncated > 0 for score in scores),
    )


def macro_average(summaries: Sequence[TaskSummary]) -> float:
    """Mean of the tasks' accuracies, each task counting the same (the paper's avg). Raises BrdError for no tasks."""
    if not summaries:
        raise BrdError("no tasks to average over")
    return sum(summary.accuracy for summary in summaries) / len(summaries)
