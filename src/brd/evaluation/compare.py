"""Two models' folders of item scores side by side: paired tests, and the paper's probability analysis."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brd.errors import BrdError
from brd.evaluation import item_table
from brd.evaluation.comparison import divergence, holm, item_differences, macro_effect, paired
from brd.evaluation.statistics import Floats, Outcomes
from brd.evaluation.tasks import Metric


def files(folder: Path) -> dict[str, Path]:
    """The item scores in a folder, by task and template."""
    found = {path.stem: path for path in sorted(folder.glob("*.parquet"))}
    if not found:
        raise BrdError(
            f"{folder}: no item scores here (*.parquet); a folder that brd score or a run has written is meant"
        )
    return found


def shared(a: Path, b: Path, same: bool = True, only: Collection[str] | None = None) -> list[str]:
    """What both folders hold. Raises BrdError when that is nothing, or when the same task's items are different
    (without ``same``: only when it has no item in common, or one that was asked in another way)."""
    left, right = files(a), files(b)
    names = [name for name in left if name in right and (only is None or name in only)]
    if not names:
        raise BrdError(f"{a} and {b} have no task and template in common ({', '.join(left)}; {', '.join(right)})")
    for name in names:
        check_same(name, left[name], right[name], same)
    return names


def check_same(name: str, a: Path, b: Path, same: bool = True) -> None:
    """Raises BrdError unless two files of item scores are of the same items, asked in the same way; without ``same``
    each may hold items that the other does not."""
    left, right = ({scores.id: prompt for scores, prompt in _asked(path)} for path in (a, b))
    only = [item for item in left if item not in right] + [item for item in right if item not in left]
    if only and (same or not left.keys() & right.keys()):
        raise BrdError(
            f"{name}: the two were scored on different items: {len(left)} in {a}, {len(right)} in {b}; "
            f"{len(only)} of them in one only, the first is {only[0]}"
        )
    if differ := [item for item in left if item in right and left[item] != right[item]]:
        raise BrdError(
            f"{name}: {len(differ)} items of the same name have other prompts or candidates in {a} than in {b}, "
            f"the first is {differ[0]}"
        )


def _asked(path: Path) -> list[tuple[Any, str]]:
    return list(zip(item_table.read(path), item_table.prompts(path), strict=True))


def metric_of(path: Path) -> Metric:
    """The metric that a file's predictions were made by."""
    found: Metric = item_table.about(path).get("metric", "token_mean")
    return found


def compare(a: Path, b: Path, metric: Metric | None = None, only: Collection[str] | None = None) -> dict[str, Any]:
    """b minus a: for each task a paired difference with interval, exact McNemar test, Holm's correction over all
    tasks; the macro-average with its own paired interval. Shares lie between 0 and 1. ``only`` names the files that
    count, without their ending."""
    names = shared(a, b, only=only)
    pairs: list[tuple[Outcomes, Outcomes]] = []
    for name in names:
        chosen = metric or metric_of(a / f"{name}.parquet")
        pairs.append(tuple(item_table.outcomes(folder / f"{name}.parquet", chosen) for folder in (a, b)))  # type: ignore[arg-type]
    groups = [item_table.about(a / f"{name}.parquet").get("group") for name in names]
    found = {}
    for name, (left, right) in zip(names, pairs, strict=True):
        found[name] = {"a": float(left.earned.mean()), "b": float(right.earned.mean()), **paired(left, right).as_dict()}
    for row, adjusted in zip(found.values(), holm([row["p"] for row in found.values()]), strict=True):
        row["p_holm"] = adjusted
    return {"tasks": found, "macro": macro_effect(_by_column(names, pairs, groups)).as_dict()}


def _by_column(
    names: Sequence[str], pairs: Sequence[tuple[Outcomes, Outcomes]], groups: Sequence[str | None]
) -> list[Floats]:
    """The item differences of each column of a macro-average. A task's templates are averaged: these ask the same items
    again, which is no new item. The tasks of a group are one column in which each counts the same."""
    by_task: dict[str, list[Floats]] = {}
    columns: dict[str, dict[str, None]] = {}
    for name, (a, b), group in zip(names, pairs, groups, strict=True):
        task = name.rsplit(".", 1)[0]
        by_task.setdefault(task, []).append(item_differences(a, b))
        columns.setdefault(group or task, {})[task] = None
    means = {task: np.mean(found, axis=0) for task, found in by_task.items()}
    found = []
    for tasks in columns.values():
        total = sum(len(means[task]) for task in tasks)
        found.append(np.concatenate([means[task] * (total / (len(tasks) * len(means[task]))) for task in tasks]))
    return found


def divergences(
    teacher: Path, student: Path, metric: Metric | None = None, only: Collection[str] | None = None
) -> dict[str, Any]:
    """Cross-entropy and KL divergence of the student's candidate distributions from the teacher's, task by task
    (paper: probability analysis); raw, and after the best temperature or (labels shared) the best prior. Taken over
    the items that both were scored on: a teacher is often asked for fewer."""
    found: dict[str, Any] = {}
    for name in shared(teacher, student, same=False, only=only):
        chosen = metric or metric_of(teacher / f"{name}.parquet")
        pair = [item_table.outcomes(folder / f"{name}.parquet", chosen) for folder in (teacher, student)]
        both = set(pair[0].ids) & set(pair[1].ids)
        left, right = _alike(*(side.take(np.array([item in both for item in side.ids])) for side in pair))
        found[name] = {"raw": divergence(left, right).as_dict()}
        found[name]["temperature"] = divergence(left, right, "temperature").as_dict()
        if left.labels is not None:
            found[name]["prior"] = divergence(left, right, "prior").as_dict()
    return found


def _alike(a: Outcomes, b: Outcomes) -> tuple[Outcomes, Outcomes]:
    """Outcomes of the same items that come from files of more: what the rest of a file has (one more candidate, labels
    that vary after all) is made the same on both sides."""
    width = max(a.values.shape[1], b.values.shape[1])
    labels = a.labels if a.labels == b.labels else None

    def padded(side: Outcomes) -> Outcomes:
        room = ((0, 0), (0, width - side.values.shape[1]))
        values = np.pad(side.values, room, constant_values=-np.inf)
        return Outcomes(side.ids, values, np.pad(side.credits, room), side.predictions, labels)

    return padded(a), padded(b)


def without(folder: Path, flagged: dict[str, set[str]], metric: Metric | None = None) -> dict[str, dict[str, Any]]:
    """Accuracies with and without the flagged items, which are named by task."""
    found: dict[str, dict[str, Any]] = {}
    for name, path in files(folder).items():
        task = str(item_table.about(path).get("task"))
        if task not in flagged:
            continue
        outcomes = item_table.outcomes(path, metric or metric_of(path))
        clean = outcomes.take(np.array([item not in flagged[task] for item in outcomes.ids]))
        found[name] = {
            "task": task,
            "n": len(outcomes.ids),
            "flagged": len(outcomes.ids) - len(clean.ids),
            "accuracy": float(outcomes.earned.mean()),
            "without": float(clean.earned.mean()) if clean.ids else None,
        }
    return found
