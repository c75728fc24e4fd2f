"""Arms against human annotations, and how far their candidate distributions are from the teacher's."""

from collections.abc import Mapping
from typing import Any

from brd.report.figures import counted, get, is_number, mean, number, percent
from brd.report.tasks import Cell, Grid, span

Figures = Mapping[str, Any]

WAYS = {"plain": "alone", "prompted": "prompted"}
KINDS = {"entities": "entities", "answers": "answers"}
FITS = {"raw": "as they are", "temperature": "after fitting a temperature", "prior": "after fitting a bias of labels"}


def gold(summary: Figures) -> Grid | None:
    """F1 against gold annotations, arms and the teacher by kind and way of asking; None where none was taken."""
    arms = {**(summary.get("arms") or {})}
    if summary.get("teacher"):
        arms["teacher"] = summary["teacher"]
    places = [
        (kind, way)
        for kind in KINDS
        for way in WAYS
        if any(is_number(get(arm, "gold", way, kind, "f1")) for arm in arms.values())
    ]
    if not places:
        return None
    rows = []
    for name, arm in arms.items():
        found = [get(arm, "gold", way, kind) or {} for kind, way in places]
        rows.append((name, [Cell(percent(f.get("f1")), span(f.get("low"), f.get("high"))) for f in found]))
    sizes = [
        next(n for arm in arms.values() if is_number(n := get(arm, "gold", way, kind, "n"))) for kind, way in places
    ]
    columns = [
        (f"{KINDS[kind]}, {WAYS[way]}", f"n = {counted(size)}") for (kind, way), size in zip(places, sizes, strict=True)
    ]
    return Grid(columns, [("", rows)])


def distances(summary: Figures) -> Grid | None:
    """Cross-entropy to the teacher by arm and task, raw and after fits; marked where lower than the reference's."""
    found: Figures = summary.get("divergences") or {}
    tasks = list(dict.fromkeys(_task(name) for arm in found.values() for name in arm))
    if not tasks:
        return None
    reference = reference_arm(summary)
    groups = []
    for fit, label in FITS.items():
        values = {arm: [_entropy(rows, task, fit) for task in tasks] for arm, rows in found.items()}
        kept = [n for n in range(len(tasks)) if any(is_number(row[n]) for row in values.values())]
        if not kept:
            continue
        base = values.get(reference) or [None] * len(tasks)
        rows = []
        for arm, row in values.items():
            marks = ["▼" if is_number(v) and is_number(b) and v < b else "" for v, b in zip(row, base, strict=True)]
            rows.append((arm, [Cell(number(v, 3), "", mark) for v, mark in zip(row, marks, strict=True)]))
        groups.append((label, rows))
    return Grid([(task, "") for task in tasks], groups)


def reference_arm(summary: Figures) -> str:
    """What arms are set against: further where there is one, else the first arm."""
    arms = list(summary.get("arms") or {})
    return "further" if "further" in arms else (arms or [""])[0]


def _task(name: str) -> str:
    return name.rsplit(".", 1)[0]


def _entropy(rows: Figures, task: str, fit: str) -> float | None:
    """Mean over the task's templates; None where one has no such fit."""
    return mean([get(row, fit, "cross_entropy") for name, row in rows.items() if _task(name) == task])
