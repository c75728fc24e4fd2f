"""Numbers as they are printed and drawn: formats, error bars, and the geometry of the report's plots and tables.

Geometry is in percent of the drawing's width and height, so that text keeps its size on every screen.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

DASH = "–"
# A line of more points than this is drawn by its means over equal stretches.
MAX_POINTS = 400
# From this share of one label on, a model is said to give always the same answer.
CONSTANT = 0.95
# Columns of a behavior's table of reading skill that only some behaviors have.
OPTIONAL_COLUMNS = {"empty": "‘none’", "distinct_questions": "distinct questions"}


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, digits: int = 2) -> str:
    """A figure with so many decimals; a dash for what was not measured."""
    return f"{value:,.{digits}f}".replace("-", "−") if is_number(value) else DASH


def percent(value: Any, digits: int = 1) -> str:
    """A share as a percentage, without the sign."""
    return number(100 * value, digits) if is_number(value) else DASH


def get(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def counted(value: Any, noun: str = "") -> str:
    if not is_number(value):
        return f"an unknown number of {noun}s" if noun else DASH
    return f"{value:,.0f} {noun}{'' if value == 1 or not noun else 's'}".strip()


def duration(seconds: Any) -> str:
    if not is_number(seconds):
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def share_error(share: Any, n: Any) -> float | None:
    """Standard error of a share of ``n`` trials, with one success and one failure added.

    The plain binomial error is zero when all trials agree, which would make any difference look real.
    """
    if not is_number(share) or not is_number(n) or n < 1:
        return None
    smoothed = (share * n + 1) / (n + 2)
    return math.sqrt(smoothed * (1 - smoothed) / (n + 2))


def task_error(task: Mapping[str, Any]) -> float | None:
    """Standard error of a task's accuracy."""
    given = task.get("standard_error")
    return float(given) if is_number(given) and given > 0 else share_error(task.get("accuracy"), task.get("n"))


def mean_error(errors: Sequence[float | None]) -> float | None:
    """Standard error of the plain mean of independent figures."""
    known = [e for e in errors if e is not None]
    return math.hypot(*known) / len(known) if errors and len(known) == len(errors) else None


def difference_error(first: float | None, second: float | None) -> float | None:
    """Standard error of a difference of two figures, taken as independent."""
    return None if first is None or second is None else math.hypot(first, second)


def mean(values: Sequence[Any]) -> float | None:
    """The plain mean; None where one of the values is not known."""
    return sum(values) / len(values) if values and all(map(is_number, values)) else None


def columns(
    tasks: Mapping[str, Any], value: Callable[[Any], Any], over_templates: Callable[[Sequence[Any]], Any]
) -> dict[str, list[Any]]:
    """What a macro-average is taken over: for each task, or group of tasks, the values of its tasks, each task's taken
    together over its templates."""
    by_task: dict[str, list[Any]] = {}
    groups: dict[str, str] = {}
    for name, task in tasks.items():
        own = task.get("task") or name
        by_task.setdefault(own, []).append(value(task))
        groups[own] = task.get("group") or own
    found: dict[str, list[Any]] = {}
    for own, values in by_task.items():
        found.setdefault(groups[own], []).append(over_templates(values))
    return found


def macro_error(arm: Mapping[str, Any]) -> float | None:
    """Standard error of the macro-average. Templates of one task ask the same items, so theirs does not shrink."""
    by_column = columns(arm.get("tasks") or {}, task_error, mean)
    return mean_error([mean_error(errors) for errors in by_column.values()])


@dataclass(frozen=True, slots=True)
class Dot:
    """A figure on a horizontal scale, with a bar to either side (none where not known)."""

    x: float
    low: float
    high: float


def dots(rows: Sequence[tuple[float | None, float | None]]) -> list[Dot | None]:
    """(figure, standard error) pairs on one common scale, with bars of two standard errors either way."""
    return placed([(v - 2 * (e or 0), v, v + 2 * (e or 0)) if is_number(v) else None for v, e in rows])


def placed(spans: Sequence[tuple[float, float, float] | None]) -> list[Dot | None]:
    """(low, figure, high) on one common scale that just holds them all."""
    known = [span for span in spans if span]
    if not known:
        return [None] * len(spans)
    low, high = min(s[0] for s in known), max(s[2] for s in known)
    width = (high - low) or 1.0

    def place(value: float) -> float:
        return round(4 + 92 * (value - low) / width, 2) if high > low else 50.0

    return [Dot(place(s[1]), place(s[0]), place(s[2])) if s else None for s in spans]


@dataclass(frozen=True, slots=True)
class Segment:
    label: str
    count: int
    start: float
    width: float


def stacked(counts: Mapping[str, Any], shown: int = 5) -> list[Segment]:
    """Counts as pieces of a bar in percent, in their given order; labels beyond ``shown`` are one last piece."""
    known = [(label, int(n)) for label, n in counts.items() if is_number(n) and n >= 0]
    if len(known) > shown:
        rest = sum(n for _, n in known[shown - 1 :])
        known = [*known[: shown - 1], (f"{len(known) - shown + 1} others", rest)]
    total = sum(n for _, n in known)
    pieces, start = [], 0.0
    for label, n in known:
        width = 100 * n / total if total else 0.0
        pieces.append(Segment(label, n, round(start, 3), round(width, 3)))
        start += width
    return pieces


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers (steps of 1, 2 or 5 times a power of ten) from ``low`` to ``high``."""
    span = (high - low) or 1.0
    power = 10 ** math.floor(math.log10(span / wanted))
    step = next(m * power for m in (1, 2, 5, 10) if span / (m * power) <= wanted)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True, slots=True)
class Curve:
    """One arm's line: SVG points in a 1000 by 1000 box, as they are and as a running mean."""

    arm: str
    raw: str
    smooth: str
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Plot:
    """Curves with their ticks, as (label, place in percent from the left or the top)."""

    curves: list[Curve]
    x_ticks: list[tuple[str, float]]
    y_ticks: list[tuple[str, float]]


def loss_plot(losses: Mapping[str, Sequence[tuple[int, Any]]]) -> Plot | None:
    """The training losses of all arms on common axes; None when there is nothing to draw."""
    clean = {arm: [(s, float(v)) for s, v in points if is_number(v)] for arm, points in losses.items()}
    clean = {arm: points for arm, points in clean.items() if points}
    if not clean:
        return None
    thin = {arm: _thinned(points) for arm, points in clean.items()}
    values = [v for points in thin.values() for _, v in points]
    pad = 0.05 * (max(values) - min(values)) or 0.5
    low, high = min(values) - pad, max(values) + pad
    left = min(points[0][0] for points in clean.values())
    right = max(max(points[-1][0] for points in clean.values()), left + 1)

    def xy(points: Sequence[tuple[float, float]]) -> str:
        return " ".join(
            f"{1000 * (s - left) / (right - left):.1f},{1000 * (high - v) / (high - low):.1f}" for s, v in points
        )

    curves = []
    for arm, points in thin.items():
        ends = max(1, len(clean[arm]) // 10)
        first, last = clean[arm][:ends], clean[arm][-ends:]
        curves.append(
            Curve(
                arm=arm,
                raw=xy(points),
                smooth=xy(_smoothed(points)),
                first=sum(v for _, v in first) / ends,
                last=sum(v for _, v in last) / ends,
            )
        )
    marks = ticks(low, high)
    digits = 0 if len(marks) > 1 and marks[1] - marks[0] >= 1 else 1 if marks[1:] and marks[1] - marks[0] >= 0.1 else 2
    return Plot(
        curves,
        [
            (f"{s:,.0f}", round(100 * (s - left) / (right - left), 2))
            for s in ticks(left, right, 4)
            if float(s).is_integer()
        ],
        [(f"{v:.{digits}f}", round(100 * (high - v) / (high - low), 2)) for v in marks],
    )


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    width = math.ceil(len(points) / MAX_POINTS)
    groups = [points[i : i + width] for i in range(0, len(points), width)]
    return [(sum(s for s, _ in g) / len(g), sum(v for _, v in g) / len(g)) for g in groups]


def _smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A centred running mean over about a tenth of the line."""
    half = len(points) // 20
    out = []
    for i, (step, _) in enumerate(points):
        window = points[max(0, i - half) : i + half + 1]
        out.append((step, sum(v for _, v in window) / len(window)))
    return out


# Tables.


def funnel(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    text = summary.get("text") or {}
    train, held_out = text.get("sentences_train"), text.get("sentences_held_out")
    sentences = train + held_out if is_number(train) and is_number(held_out) else None
    rows = []
    for name, counts in (summary.get("readings") or {}).items():
        asked = counts.get("asked")
        steps = [
            (label, counts.get(key), counts[key] / asked if is_number(counts.get(key)) and asked else None)
            for label, key in (("asked", "asked"), ("well formed", "well_formed"), ("verified", "verified"))
        ]
        reasons = sorted((counts.get("reasons") or {}).items(), key=lambda item: -(item[1] or 0))
        rows.append({"name": name, "sentences": sentences, "steps": steps, "counts": counts, "reasons": reasons[:8]})
    return rows


def constant(counts: Mapping[str, Any]) -> tuple[str, float] | None:
    """The label that nearly all predictions are, and its share."""
    known = {label: n for label, n in counts.items() if is_number(n)}
    total = sum(known.values())
    if len(known) < 2 or not total:
        return None
    label = max(known, key=lambda k: known[k])
    return (label, known[label] / total) if known[label] / total >= CONSTANT else None


def balance(summary: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """For each task: the gold labels (where known) and every arm's predictions, as stacked bars."""
    arms: dict[str, Any] = summary.get("arms") or {}
    tasks: dict[str, list[dict[str, Any]]] = {}
    for arm, a in arms.items():
        for name, task in (a.get("tasks") or {}).items():
            rows = tasks.setdefault(name, [])
            if not rows and task.get("gold"):
                rows.append({"arm": None, "bar": stacked(task["gold"]), "constant": None})
            counts = task.get("predicted") or {}
            rows.append({"arm": arm, "bar": stacked(counts), "constant": constant(counts)})
    return list(tasks.items())


def skill(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Reading skill overall and by behavior: (arm, how, figures) rows, prompted ones where measured."""
    arms: dict[str, Any] = summary.get("arms") or {}
    ways = (("reading", "as it stands"), ("reading_prompted", "with the few-shot prompt in front"))
    rows = [(arm, how, a[key]) for key, how in ways for arm, a in arms.items() if a.get(key)]
    behaviors: dict[str, Any] = {}
    for name in dict.fromkeys(n for _, _, f in rows for n in f.get("behaviors") or {}):
        mine = [(arm, how, get(f, "behaviors", name) or {}) for arm, how, f in rows]
        extra = [(key, label) for key, label in OPTIONAL_COLUMNS.items() if any(key in f for _, _, f in mine)]
        # 'none' is well formed and never wrong in its words: questions have no such answer, entities do.
        extra = [(k, label) for k, label in extra if k != "empty" or any(f.get(k) for _, _, f in mine) or name == "ner"]
        behaviors[name] = {"rows": mine, "extra": extra}
    return {"rows": rows, "behaviors": behaviors}
