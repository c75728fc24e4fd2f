"""The primary contrast of an experiment: one arm against another, with one or several seeds each, on the same items.

Items are drawn within each task, the same ones for all seeds, arms and templates; seeds are drawn too where there are
several. Everywhere ``a`` is what is compared against and ``b`` what is compared: positive means that b is better.
"""

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from brd.errors import BrdError
from brd.evaluation import item_table, tables
from brd.evaluation.compare import check_same, files, metric_of
from brd.evaluation.comparison import holm, item_differences, seed_effect
from brd.evaluation.scorecard import prior
from brd.evaluation.statistics import (
    Floats,
    Outcomes,
    calibrated_predictions,
    draw_counts,
    percentile_interval,
    rankings,
    weighted_auc,
)

ENDPOINTS = ("accuracy", "auc", "calibrated_accuracy")
DRAWS = 2000
# Two-sided 5 % test, 80 % power: a difference is found in four runs of five when it is so many standard errors.
DETECTABLE = 2.8
# Sums of the same numbers in another order differ by less than this: no difference at all.
ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class TaskDraws:
    """One task, its templates averaged. Columns and rows of seeds are a's, then b's.

    ``values``: by endpoint, (1 + draws, seeds), the first row of all items, the others of the draws; NaN where a draw
    has no right or no wrong answers; no "auc" where the task has none.
    ``credits``: credit of each choice, plain ("accuracy") and after calibration, (seeds, items).
    """

    n: int
    templates: int
    group: str | None
    values: dict[str, Floats]
    credits: dict[str, Floats]


def contrast(
    a: Sequence[Path],
    b: Sequence[Path],
    *,
    leave_out: Collection[str] = (),
    only: Collection[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """b minus a, each given by its seeds' folders of item scores; shares lie between 0 and 1, intervals are 95 %.

    Endpoints are macro-averages over the tasks that have them, the tasks of a group averaged first. p is two-sided, by
    the share of draws beyond zero. ``items_only`` takes the seeds as they are. k drawn seeds vary by (k - 1) / k of
    what seeds do, too little where seeds differ much, while drawing both counts chance that is neither of items nor of
    seeds more than once, too much where they do not; ``seed_effect``, a t interval, errs less either way. ``by_seed``
    pairs the seeds in order.
    ``leave_out`` names tasks that do not count; ``only`` the files that do, without their ending.
    Raises BrdError where the folders' items, prompts or credits differ.
    """
    found, left = _tasks(a, b, leave_out, only, seed)
    columns = _columns(found)
    weights = _seed_weights(len(a), len(b), seed)
    return {
        "seeds": {"a": len(a), "b": len(b)},
        "draws": DRAWS,
        "endpoints": {name: _endpoint(_macro(columns, name), len(a), weights) for name in ENDPOINTS},
        "seed_effect": _seed_effect(columns, len(a), len(b)),
        "tasks": _by_task(found, len(a)),
        **left,
    }


def smallest_detectable(
    a: Sequence[Path],
    b: Sequence[Path],
    *,
    leave_out: Collection[str] = (),
    only: Collection[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """For each endpoint the bootstrap standard error of b minus a, and the difference that a two-sided test at 5 %
    finds in four runs of five; ``items_only`` with the seeds as they are. Arguments and errors are ``contrast``'s."""
    whole = contrast(a, b, leave_out=leave_out, only=only, seed=seed)["endpoints"]
    return {
        name: None if row is None else {**_detects(row), "items_only": _detects(row["items_only"])}
        for name, row in whole.items()
    }


def _detects(row: Mapping[str, Any]) -> dict[str, float | None]:
    error = row["standard_error"]
    return {"standard_error": error, "detectable": None if error is None else DETECTABLE * error}


# Reading, and drawing items


def _tasks(
    a: Sequence[Path], b: Sequence[Path], leave_out: Collection[str], only: Collection[str] | None, seed: int
) -> tuple[dict[str, TaskDraws], dict[str, list[str]]]:
    """The tasks that all folders hold, and the names of those left out and of files that only some folders hold."""
    if not a or not b:
        raise BrdError("a contrast takes at least one folder of item scores on either side")
    held = [files(folder) for folder in (*a, *b)]
    every = {name: name.rsplit(".", 1)[0] for table in held for name in table if only is None or name in only}
    if unknown := sorted(set(leave_out) - set(every.values())):
        raise BrdError(f"there are no scores of the tasks to leave out: {', '.join(unknown)}")
    counted = {name: task for name, task in every.items() if task not in leave_out}
    by_task: dict[str, list[list[Path]]] = {}
    for name, task in counted.items():
        if all(name in table for table in held):
            by_task.setdefault(task, []).append([table[name] for table in held])
    if not by_task:
        raise BrdError(f"no task and template is in all of {', '.join(map(str, (*a, *b)))}")
    missing = sorted(name for name in counted if not all(name in table for table in held))
    # Draws hang on the name, so that leaving out a task changes nothing in the others.
    found = {task: _task(task, by_task[task], _stream(seed, task)) for task in sorted(by_task)}
    return found, {"left_out": sorted(set(leave_out)), "not_shared": missing}


def _stream(seed: int, name: str) -> int:
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0])


def _task(task: str, templates: Sequence[Sequence[Path]], seed: int) -> TaskDraws:
    """One task from its files, of each template one a folder."""
    ids: tuple[str, ...] | None = None
    plain, calibrated, ranked, width = list[Floats](), list[Floats](), list[list[Any]](), 1
    for paths in templates:
        for path in paths[1:]:
            check_same(paths[0].stem, paths[0], path)
        metric = metric_of(paths[0])
        outcomes = [item_table.outcomes(path, metric) for path in paths]
        ids = outcomes[0].ids if ids is None else ids
        outcomes = [_aligned(paths[0], o, ids) for o in outcomes]
        for other in outcomes[1:]:
            item_differences(outcomes[0], other)
        plain.append(np.stack([o.earned for o in outcomes]))
        priors = [prior(path, metric) for path in paths] if outcomes[0].labels is not None else [None]
        known = [p for p in priors if p is not None]
        if len(known) == len(priors):
            pairs = zip(outcomes, known, strict=True)
            calibrated.append(np.stack([_earned(o, calibrated_predictions(o, p)) for o, p in pairs]))
        if all(orders := [rankings(o) for o in outcomes]):
            ranked.append(orders)
        width = max(width, outcomes[0].values.shape[1])
    accuracy = np.mean(plain, axis=0)
    # Where there is nothing to calibrate, the accuracy counts as it is.
    credits = {"accuracy": accuracy, "calibrated_accuracy": np.mean(calibrated, axis=0) if calibrated else accuracy}
    group = item_table.about(templates[0][0]).get("group")
    return TaskDraws(accuracy.shape[1], len(templates), group, _drawn(credits, ranked, width, seed), credits)


def _columns(found: Mapping[str, TaskDraws]) -> dict[str, TaskDraws]:
    """What the macro-averages are taken over: tasks, those of a group as one."""
    by_group: dict[str, list[TaskDraws]] = {}
    for name, task in found.items():
        by_group.setdefault(task.group or name, []).append(task)
    columns = {}
    for name, tasks in by_group.items():
        having = {key: [t.values[key] for t in tasks if key in t.values] for key in ENDPOINTS}
        values = {key: _known_mean(np.stack(tables)) for key, tables in having.items() if tables}
        # So scaled, the mean over all items is the mean of the tasks' means.
        total = sum(t.n for t in tasks)
        credits = {
            key: np.concatenate([t.credits[key] * (total / (len(tasks) * t.n)) for t in tasks], axis=1)
            for key in tasks[0].credits
        }
        columns[name] = TaskDraws(total, max(t.templates for t in tasks), None, values, credits)
    return columns


def _aligned(path: Path, outcomes: Outcomes, ids: tuple[str, ...]) -> Outcomes:
    """The outcomes in the order of ``ids``. Raises BrdError where they are of other items."""
    if outcomes.ids == ids:
        return outcomes
    places = {name: place for place, name in enumerate(outcomes.ids)}
    if len(outcomes.ids) != len(ids) or places.keys() != set(ids):
        raise BrdError(f"{path}: has other items than the task's other templates ({len(outcomes.ids)} and {len(ids)})")
    order = np.array([places[name] for name in ids])
    o = outcomes
    return replace(o, ids=ids, values=o.values[order], credits=o.credits[order], predictions=o.predictions[order])


def _earned(outcomes: Outcomes, choices: Any) -> Floats:
    found: Floats = outcomes.credits[np.arange(len(choices)), choices]
    return found


def _drawn(credits: Mapping[str, Floats], ranked: Sequence[Sequence[Any]], width: int, seed: int) -> dict[str, Floats]:
    """``TaskDraws.values`` of (seeds, items) credits and of rankings, of each template one a seed."""
    n = next(iter(credits.values())).shape[1]
    parts: dict[str, list[Floats]] = {}
    for counts in chain([np.ones((1, n))], draw_counts(n, seed, DRAWS, width)):
        for name, table in credits.items():
            parts.setdefault(name, []).append(counts @ table.T / n)
        if ranked:
            areas = np.array([[weighted_auc(order, counts) for order in orders] for orders in ranked])
            parts.setdefault("auc", []).append(_known_mean(areas).T)
    return {name: np.concatenate(chunks) for name, chunks in parts.items()}


def _known_mean(table: Floats) -> Floats:
    """Mean over the first axis of what is not NaN; NaN where all is."""
    known = ~np.isnan(table)
    count = known.sum(axis=0)
    total = np.where(known, table, 0.0).sum(axis=0)
    mean: Floats = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean


# Figures


def _seed_weights(a: int, b: int, seed: int) -> tuple[Floats, Floats]:
    """Shares of each arm's seeds in every draw, (draws, seeds) each."""
    generator = np.random.default_rng([seed, a, b])
    left, right = (generator.multinomial(k, [1 / k] * k, size=DRAWS) / k for k in (a, b))
    return left, right


def _macro(found: Mapping[str, TaskDraws], endpoint: str) -> tuple[int, Floats] | None:
    """Number of tasks that have the endpoint and its mean over them, (1 + draws, seeds)."""
    tables = [task.values[endpoint] for task in found.values() if endpoint in task.values]
    return (len(tables), _known_mean(np.stack(tables))) if tables else None


def _endpoint(macro: tuple[int, Floats] | None, split: int, weights: tuple[Floats, Floats]) -> dict[str, Any] | None:
    """An endpoint's figures; ``split`` is the number of a's seeds."""
    if macro is None:
        return None
    tasks, values = macro
    a, b = values[:, :split], values[:, split:]
    drawn = (weights[1] * b[1:]).sum(axis=1) - (weights[0] * a[1:]).sum(axis=1)
    gaps = b[0] - (a[0] if a.shape == b.shape else a[0].mean())
    return {
        "tasks": tasks,
        **_difference(values, split, drawn),
        "by_seed": [float(gap) for gap in gaps],
        "same_sign": bool((gaps > ROUNDING).all() or (gaps < -ROUNDING).all()),
        "items_only": _spread(_items_only(values, split)),
    }


def _items_only(values: Floats, split: int) -> Floats:
    found: Floats = values[1:, split:].mean(axis=1) - values[1:, :split].mean(axis=1)
    return found


def _difference(values: Floats, split: int, drawn: Floats) -> dict[str, Any]:
    a, b = float(values[0, :split].mean()), float(values[0, split:].mean())
    return {"a": a, "b": b, "difference": b - a, **_spread(drawn)}


def _spread(drawn: Floats) -> dict[str, float | None]:
    """Interval, p and standard error of drawn differences, (draws,)."""
    known = drawn[~np.isnan(drawn)]
    if len(known) < 2:
        return dict.fromkeys(("low", "high", "p", "standard_error"))
    low, high = percentile_interval(known)
    beyond = min(int((known <= ROUNDING).sum()), int((known >= -ROUNDING).sum()))
    p = min(1.0, 2 * (beyond + 1) / (len(known) + 1))
    return {"low": low, "high": high, "p": p, "standard_error": float(known.std(ddof=1))}


def _seed_effect(found: Mapping[str, TaskDraws], a: int, b: int) -> dict[str, Any] | None:
    """The mixed model on pairs of b's and a's seeds; None where they do not pair up, or are not several."""
    if a != b or a < 2 or min(task.n for task in found.values()) < 2:
        return None
    return {
        name: seed_effect([task.credits[name][a:] - task.credits[name][:a] for task in found.values()]).as_dict()
        for name in ("accuracy", "calibrated_accuracy")
    }


def _by_task(found: Mapping[str, TaskDraws], split: int) -> dict[str, Any]:
    """Each task's differences in accuracy and AUC, seeds as they are; p_holm is corrected for all tasks."""
    rows: dict[str, dict[str, Any]] = {
        name: {"n": task.n, "templates": task.templates, "group": task.group, "accuracy": None, "auc": None}
        for name, task in found.items()
    }
    for endpoint in ("accuracy", "auc"):
        having = {name: task.values[endpoint] for name, task in found.items() if endpoint in task.values}
        for name, values in having.items():
            rows[name][endpoint] = _difference(values, split, _items_only(values, split))
        tested = [rows[name][endpoint] for name in having if rows[name][endpoint]["p"] is not None]
        for row, adjusted in zip(tested, holm([row["p"] for row in tested]), strict=True):
            row["p_holm"] = adjusted
    return rows


# For a terminal


def contrast_lines(found: Mapping[str, Any]) -> list[str]:
    """A contrast as lines of text: its endpoints, then its tasks. Percent, with 95 % intervals in brackets."""
    seeds = found["seeds"]
    arms = [f"{side} is {', '.join(found[side])}" for side in ("a", "b") if found.get(side)]
    lines = ["; ".join([f"{found.get('name', 'b - a')}: {seeds['b']} against {seeds['a']} seeds", *arms])]
    rows = [["endpoint", "a", "b", "difference", "p", "items only", "p", "by seed", "same sign"]]
    for name, row in found["endpoints"].items():
        if row is None:
            continue
        only = row["items_only"]
        rows.append(
            [
                f"{name.replace('_', ' ')} ({row['tasks']} tasks)",
                tables.percent(row["a"]),
                tables.percent(row["b"]),
                *_printed(row),
                *_printed({**only, "difference": row["difference"]}),
                " ".join(f"{100 * gap:+.1f}" for gap in row["by_seed"]),
                "yes" if row["same_sign"] else "no",
            ]
        )
    lines += tables.grid(rows).splitlines()
    for name, row in (found["seed_effect"] or {}).items():
        printed = tables.interval(row["difference"], row["low"], row["high"])
        lines.append(f"{name.replace('_', ' ')}, mixed model of seeds and items: {printed}, p {_p(row['p'])}")
    rows = [["task", "n", "accuracy", "p (Holm)", "AUC", "p (Holm)"]]
    for name, row in found["tasks"].items():
        cells = [cell for key in ("accuracy", "auc") for cell in _printed(row[key], "p_holm")]
        rows.append([name, str(row["n"]), *cells])
    lines += tables.grid(rows).splitlines()
    for key, said in (("left_out", "left out"), ("not_shared", "not in every folder, so not counted")):
        if found[key]:
            lines.append(f"{said}: {', '.join(found[key])}")
    return lines


def _printed(row: Mapping[str, Any] | None, p: str = "p") -> list[str]:
    if row is None:
        return ["-", "-"]
    return [tables.interval(row["difference"], row["low"], row["high"]), _p(row.get(p))]


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
