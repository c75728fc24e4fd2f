"""The tables of the tasks: accuracies, what does not hang on the labels a model prefers, paired comparisons, notes.

Older summaries lack some of the figures: what is missing is a dash, a table without figures is None.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brd.report import figures
from brd.report.figures import DASH, columns, counted, get, is_number, macro_error, mean, number, percent, task_error

Figures = Mapping[str, Any]

# The standard normal's 97.5 % point: 95 % intervals.
Z = 1.96
# From this p-value on, a difference is not called distinguishable, whatever its interval.
SIGNIFICANT = 0.05
NOT_DISTINGUISHABLE = "not distinguishable"
# So many items whose prediction hangs on rounding are named.
NAMED_TIES = 3


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure as printed, what stands below it in small, and a mark with its meaning."""

    value: str
    below: str = ""
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """Arms by tasks. ``columns``: (name, small print); ``groups``: (label, (arm, cells) rows); a total stands last."""

    columns: list[tuple[str, str]]
    groups: list[tuple[str, list[tuple[str, list[Cell]]]]]
    total: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one kind: a task's cell, an arm's cell in the last column, and the figure that must be known."""

    label: str
    key: str
    cell: Callable[[Figures], Cell]
    total: Callable[[Figures], Cell] | None = None


# Arms, tasks and templates.


def _arms(summary: Figures) -> dict[str, Any]:
    return summary.get("arms") or {}


def _tasks(arm: Figures) -> dict[str, Any]:
    return {name: task for name, task in (arm.get("tasks") or {}).items() if task}


def _any_arm(summary: Figures) -> dict[str, Any]:
    """Each task's figures in the first arm that has them, for what does not depend on the arm."""
    found: dict[str, Any] = {}
    for arm in _arms(summary).values():
        for name, task in _tasks(arm).items():
            found.setdefault(name, task)
    return found


def _over_tasks(tasks: Figures, key: str) -> float | None:
    """Mean over tasks, the templates of each averaged first, then the tasks of a group; None where one is missing."""
    return mean([mean(means) for means in columns(tasks, lambda task: task.get(key), mean).values()])


def how_asked(summary: Figures) -> str:
    """The number of examples in the prompts, in words; older summaries, which do not say it, are zero-shot."""
    shots = sorted({n for task in _any_arm(summary).values() if is_number(n := task.get("shots") or 0)}) or [0]
    if shots[-1] == 0:
        return "zero-shot"
    return f"{counted(shots[-1])}-shot" if len(shots) == 1 else f"{counted(shots[0])}- to {counted(shots[-1])}-shot"


# Arms by tasks.


def _total(summary: Figures) -> tuple[str, str]:
    tasks = {task.get("task") or name for name, task in _any_arm(summary).items()}
    return "macro average", counted(len(tasks), "task")


def accuracies(summary: Figures) -> dict[str, Any]:
    """Accuracies with 95 % intervals. A mark says that one is more than two standard errors from the first arm's."""
    arms, tasks = _arms(summary), _any_arm(summary)
    first = next(iter(arms), None)
    base = arms[first] if first is not None else {}
    rows = []
    for arm, a in arms.items():
        cells = []
        for name in tasks:
            task = get(a, "tasks", name) or {}
            ends = (task.get("low"), task.get("high"))
            if not all(map(is_number, ends)):
                ends = _normal(task.get("accuracy"), task_error(task))
            mark = _mark(task, get(base, "tasks", name) or {}, task_error, "accuracy")
            cells.append(Cell(percent(task.get("accuracy")), span(*ends), mark))
        ends = _normal(a.get("macro_average"), macro_error(a))
        mark = _mark(a, base, macro_error, "macro_average")
        rows.append((arm, [*cells, Cell(percent(a.get("macro_average")), span(*ends), mark)]))
    trivial = []
    for label, key in (("commonest label", "majority"), ("chance", "chance")):
        values = [*(task.get(key) for task in tasks.values()), _over_tasks(tasks, key)]
        trivial.append((label, [Cell(percent(v)) for v in values]))
    columns = [(name, f"n = {counted(task.get('n'))}") for name, task in tasks.items()]
    return {"grid": Grid(columns, [("", rows)], _total(summary)), "trivial": trivial, "first": first}


def _normal(value: Any, error: float | None) -> tuple[Any, Any]:
    if not is_number(value) or error is None:
        return None, None
    return max(0.0, value - Z * error), min(1.0, value + Z * error)


def span(low: Any, high: Any) -> str:
    """An interval of shares, in %."""
    return f"{percent(low)}–{percent(high)}" if is_number(low) and is_number(high) else ""


def _mark(mine: Figures, base: Figures, error_of: Callable[[Figures], float | None], key: str) -> str:
    error = figures.difference_error(error_of(mine), error_of(base))
    if error is None or not is_number(mine.get(key)) or not is_number(base.get(key)):
        return ""
    difference = mine[key] - base[key]
    return "" if abs(difference) <= 2 * error else ("▲" if difference > 0 else "▼")


def _grid(summary: Figures, groups: Sequence[Group]) -> Grid | None:
    """Arms by tasks, a group of rows for each kind of cell that some arm has a figure for."""
    names, arms = list(_any_arm(summary)), _arms(summary)
    kept = [g for g in groups if any(is_number(t.get(g.key)) for a in arms.values() for t in _tasks(a).values())]
    if not kept:
        return None
    made = []
    for group in kept:
        rows = []
        for arm, a in arms.items():
            cells = [group.cell(get(a, "tasks", name) or {}) for name in names]
            rows.append((arm, [*cells, group.total(a)] if group.total else cells))
        made.append((group.label, rows))
    return Grid([(name, "") for name in names], made, _total(summary) if kept[0].total else None)


def without_preference(summary: Figures) -> Grid | None:
    """Area under the curve, and accuracy after contextual calibration beside the plain one."""
    return _grid(
        summary,
        [
            Group("area under the curve", "auc", _auc, lambda a: Cell(percent(a.get("macro_auc")))),
            Group(
                "accuracy after calibration",
                "calibrated_accuracy",
                lambda t: Cell(percent(t.get("calibrated_accuracy")), _plainly(t.get("accuracy"))),
                lambda a: Cell(percent(a.get("macro_calibrated_accuracy")), _plainly(a.get("macro_average"))),
            ),
        ],
    )


def _auc(task: Figures) -> Cell:
    return Cell(percent(task.get("auc")), span(task.get("auc_low"), task.get("auc_high")))


def _plainly(accuracy: Any) -> str:
    return f"plain {percent(accuracy)}" if is_number(accuracy) else ""


def more(summary: Figures) -> Grid | None:
    """Preferred labels, macro-F1 and calibration error."""
    return _grid(
        summary,
        [
            _shares("share of the label predicted most", "preferred"),
            _shares("the same after calibration", "calibrated_preferred"),
            _shares("macro-F1", "macro_f1"),
            _shares("calibration error", "calibration_error"),
        ],
    )


def _shares(label: str, key: str) -> Group:
    return Group(label, key, lambda task: Cell(percent(task.get(key))))


def spread(summary: Figures) -> Grid | None:
    """How far a task's accuracy moves with the wording of its prompt."""
    arms = _arms(summary)
    found = {name: s for arm in arms.values() for name, s in (arm.get("spread") or {}).items() if s}
    if not found:
        return None
    rows = []
    for arm, a in arms.items():
        mine = [get(a, "spread", name) or {} for name in found]
        rows.append((arm, [Cell(_deviating(s), span(s.get("low"), s.get("high"))) for s in mine]))
    return Grid([(name, counted(s.get("templates"), "template")) for name, s in found.items()], [("", rows)])


def _deviating(row: Figures) -> str:
    return percent(row.get("mean")) + (f" ± {percent(row.get('sd'))}" if is_number(row.get("sd")) else "")


# Paired comparisons.


def judged(difference: Figures) -> str:
    """'higher', 'lower' or 'not distinguishable': the interval decides, and the p-value where there is one."""
    low, high, p = (difference.get(key) for key in ("low", "high", "p"))
    if not is_number(low) or not is_number(high):
        return DASH
    if low <= 0 <= high or (is_number(p) and p > SIGNIFICANT):
        return NOT_DISTINGUISHABLE
    holm = difference.get("p_holm")
    alone = is_number(holm) and holm > SIGNIFICANT
    return ("higher" if low > 0 else "lower") + (", if tested alone" if alone else "")


def signed(value: Any) -> str:
    """Points with their sign."""
    return ("+" if is_number(value) and round(100 * value, 1) > 0 else "") + percent(value)


def signed_span(low: Any, high: Any) -> str:
    return f"{signed(low)} to {signed(high)}" if is_number(low) and is_number(high) else ""


def probability(p: Any) -> str:
    return "< 0.001" if is_number(p) and p < 0.001 else number(p, 3)


def macro_difference(summary: Figures, of: str, against: str) -> dict[str, Any] | None:
    """The paired difference of two arms' macro-averages, whichever way it was compared; None where it was not."""
    for pair in _pairs(summary):
        macro = pair.get("macro") or {}
        difference, low, high = (macro.get(key) for key in ("difference", "low", "high"))
        if not (is_number(difference) and is_number(low) and is_number(high)):
            continue
        found = dict(macro)
        if (pair["b"], pair["a"]) == (of, against):
            return found
        if (pair["a"], pair["b"]) == (of, against):
            return {**found, "difference": -difference, "low": -high, "high": -low}
    return None


def _pairs(summary: Figures) -> list[dict[str, Any]]:
    pairs = [c for c in (summary.get("comparisons") or {}).values() if isinstance(c, Mapping)]
    return [dict(c) for c in pairs if c.get("a") and c.get("b") and (c.get("tasks") or c.get("macro"))]


def comparisons(summary: Figures) -> list[dict[str, Any]]:
    """For each pair of arms its rows, the macro-average's last; all are drawn on one scale, with the place of zero."""
    files = {f"{t.get('task')}.{t.get('template')}": name for name, t in _any_arm(summary).items()}
    found = []
    for pair in _pairs(summary):
        tasks = {files.get(name, name): row for name, row in (pair.get("tasks") or {}).items() if row}
        tasks = {name: tasks[name] for name in [*filter(tasks.__contains__, files.values()), *tasks]}
        rows = [_row(name, f"n = {counted(row.get('n'))}", row) for name, row in tasks.items()]
        macro = pair.get("macro") or {}
        total = _row("macro average", counted(macro.get("tasks"), "task"), macro) if macro else None
        found.append({"a": pair["a"], "b": pair["b"], "rows": rows, "total": total})
    every = [row for pair in found for row in [*pair["rows"], *([pair["total"]] if pair["total"] else [])]]
    *drawn, zero = figures.placed([*(row["drawn"] for row in every), (0.0, 0.0, 0.0)])
    for row, dot in zip(every, drawn, strict=True):
        row["dot"] = dot
    return [{**pair, "zero": zero.x if zero else None} for pair in found]


def _row(name: str, size: str, row: Figures) -> dict[str, Any]:
    difference, low, high = (row.get(key) for key in ("difference", "low", "high"))
    auc_low, auc_high = row.get("auc_low"), row.get("auc_high")
    whole = is_number(difference) and is_number(low) and is_number(high)
    return {
        "name": name,
        "size": size,
        "difference": Cell(signed(difference), signed_span(low, high)),
        "drawn": (low, difference, high) if whole else None,
        "verdict": judged(row),
        "only_b": row.get("only_b"),
        "only_a": row.get("only_a"),
        "p": probability(row.get("p")),
        "p_holm": probability(row.get("p_holm")),
        "auc": Cell(
            signed(row.get("auc_difference")),
            signed_span(auc_low, auc_high),
            _side(auc_low, auc_high),
        ),
    }


def _side(low: Any, high: Any) -> str:
    """A mark where an interval leaves out zero."""
    if not is_number(low) or not is_number(high) or low <= 0 <= high:
        return ""
    return "▲" if low > 0 else "▼"


# What went on while scoring.


def notes(summary: Figures) -> list[str]:
    """Contexts that did not fit, and predictions that hang on rounding, task by task."""
    said = []
    for name in _any_arm(summary):
        if cut := _by_arm(summary, name, "truncated"):
            said.append(f"{name}: the context was cut from the left to fit the model’s window for {cut}.")
        if ties := _by_arm(summary, name, "near_ties"):
            lists = [get(a, "tasks", name, "near_tie_items") or [] for a in _arms(summary).values()]
            items = list(dict.fromkeys(str(item) for items in lists for item in items))[:NAMED_TIES]
            named = f" (such as {', '.join(items)})" if items else ""
            said.append(
                f"{name}: the two best answers lie within 0.0001 of each other, so that rounding can turn the "
                f"prediction, for {ties}{named}."
            )
    return said


def _by_arm(summary: Figures, task: str, key: str) -> str:
    """A task's counts in words, once where all arms have the same; empty where all are zero or unknown."""
    counts = {arm: get(a, "tasks", task, key) for arm, a in _arms(summary).items()}
    known = {arm: n for arm, n in counts.items() if is_number(n) and n > 0}
    if len(known) == len(counts) > 1 and len(set(known.values())) == 1:
        return f"{counted(next(iter(known.values())), 'item')} in every arm"
    return ", ".join(f"{counted(n, 'item')} in {arm}" for arm, n in known.items())
