"""The contrasts of arms with several seeds: endpoints, and the tasks that they are averages of."""

from collections.abc import Mapping
from typing import Any

from brd.report import figures
from brd.report.figures import counted, get, is_number, percent
from brd.report.tasks import Cell, probability, signed, signed_span

Figures = Mapping[str, Any]

ENDPOINTS = {
    "accuracy": "accuracy",
    "auc": "area under the curve",
    "calibrated_accuracy": "accuracy after calibration",
}


def contrasts(summary: Figures) -> list[dict[str, Any]]:
    """For each contrast its endpoints and its tasks as they are printed, the tasks with their places on one scale.

    A contrast may hold its endpoints without some tasks too, as ``without``: these follow as a second group.
    """
    return [_contrast(found) for found in summary.get("contrasts") or [] if found]


def several_seeds(summary: Figures) -> bool:
    """Whether some contrast holds how much seeds differ."""
    counts = [get(found, "seeds", side) for found in summary.get("contrasts") or [] for side in ("a", "b")]
    return any(is_number(n) and n > 1 for n in counts)


def _contrast(found: Figures) -> dict[str, Any]:
    tasks = [_task(name, row) for name, row in (found.get("tasks") or {}).items() if row]
    *drawn, zero = figures.placed([*(row["drawn"] for row in tasks), (0.0, 0.0, 0.0)])
    for row, dot in zip(tasks, drawn, strict=True):
        row["dot"] = dot
    without = found.get("without") or {}
    groups = [("", _endpoints(found)), (f"without {_names(without.get('left_out'))}", _endpoints(without))]
    effects = found.get("seed_effect") or {}
    arms = {side: [str(name) for name in found.get(side) or []] or [side] for side in ("a", "b")}
    seeds = f"{counted(get(found, 'seeds', 'b'))} against {counted(get(found, 'seeds', 'a'), 'seed')}"
    return {
        "name": str(found.get("name") or "b - a"),
        "a": arms["a"][0],
        "b": arms["b"][0],
        "about": f"{', '.join(arms['b'])} against {', '.join(arms['a'])} ({seeds})",
        "groups": [(label, rows) for label, rows in groups if rows],
        "effects": [_effect(ENDPOINTS.get(key, key), row) for key, row in effects.items() if row],
        "tasks": tasks,
        "zero": zero.x if zero else None,
        "left_out": _names(found.get("left_out")),
        "not_shared": _names(found.get("not_shared")),
    }


def _names(found: Any) -> str:
    return ", ".join(map(str, found or []))


def _endpoints(found: Figures) -> list[dict[str, Any]]:
    rows = found.get("endpoints") or {}
    return [_endpoint(label, rows[key]) for key, label in ENDPOINTS.items() if rows.get(key)]


def _endpoint(label: str, row: Figures) -> dict[str, Any]:
    items_only = row.get("items_only") or {}
    same_sign = row.get("same_sign")
    return {
        "label": label,
        "size": counted(row.get("tasks"), "task"),
        "a": percent(row.get("a")),
        "b": percent(row.get("b")),
        "difference": _difference(row),
        "p": probability(row.get("p")),
        "items_only": Cell(
            signed_span(items_only.get("low"), items_only.get("high")) or figures.DASH,
            f"p {probability(items_only.get('p'))}",
        ),
        "by_seed": Cell(
            ", ".join(signed(gap) for gap in row.get("by_seed") or []) or figures.DASH,
            "" if same_sign is None else ("same sign" if same_sign else "signs differ"),
        ),
    }


def _difference(row: Figures) -> Cell:
    return Cell(signed(row.get("difference")), signed_span(row.get("low"), row.get("high")))


def _effect(label: str, row: Figures) -> str:
    span = signed_span(row.get("low"), row.get("high")) or figures.DASH
    return f"{label} {signed(row.get('difference'))} ({span}), p {probability(row.get('p'))}"


def _task(name: str, row: Figures) -> dict[str, Any]:
    accuracy, auc = row.get("accuracy") or {}, row.get("auc") or {}
    span = tuple(accuracy.get(key) for key in ("low", "difference", "high"))
    return {
        "name": name,
        "size": f"n = {counted(row.get('n'))}",
        "accuracy": _difference(accuracy),
        "drawn": span if all(map(is_number, span)) else None,
        "p_holm": probability(accuracy.get("p_holm")),
        "auc": _difference(auc),
        "auc_p_holm": probability(auc.get("p_holm")),
    }
