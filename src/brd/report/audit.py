"""The closer look at the teacher's readings: verdicts by length, failures with examples, what readings hold."""

from collections.abc import Iterable, Mapping
from typing import Any

from brd.report import figures
from brd.report.figures import DASH, counted, get, is_number, number, percent
from brd.report.tasks import span

Figures = Mapping[str, Any]

# Rows of a table of labels, and reasons; audit.json has all.
ROWS = 12
VERDICTS = ("grounded", "partly verified", "empty", "rejected", "malformed")
_GOLD = {"f1": "F1", "precision": "precision", "recall": "recall", "f1_untyped": "names alone", "exact_match": "exact"}


def audit(found: Figures | None) -> dict[str, Any] | None:
    """audit.json as the page prints it; None where nothing was looked at."""
    if not found or not found.get("behaviors"):
        return None
    return {
        "said": _said(found),
        "behaviors": [_behavior(name, row) for name, row in found["behaviors"].items() if row],
        "gold": _gold(found.get("gold") or {}),
    }


def _said(found: Figures) -> list[str]:
    places = found.get("sentences") or {}
    said = [
        f"Each different sentence counts once here: {counted(places.get('distinct'))} of them stand at "
        f"{counted(places.get('places'), 'place')}. Scripts: {_scripts(places.get('scripts'))}; the language, "
        f"{found.get('language') or DASH}, is the recipe’s, it was not detected."
    ]
    if places.get("repeated"):
        said.append(
            f"{counted(places['repeated'], 'place')} hold a sentence that stands elsewhere too: "
            f"{_texts(places.get('commonest'))}."
        )
    if found.get("other_readings"):
        said.append(
            f"{counted(found['other_readings'], 'reading')} in the store are of another teacher, prompt or text and "
            "are not counted."
        )
    return said


def _behavior(name: str, found: Figures) -> dict[str, Any]:
    asked = found.get("asked")
    reasons = {
        "Why readings failed": found.get("reasons"),
        "Why parts of verified readings were dropped": found.get("dropped"),
        "Answers in a script that neither sentence nor prompt has": found.get("other_scripts"),
    }
    by_length = [(f"{row.get('words')} words", row) for row in found.get("by_length") or [] if row.get("asked")]
    return {
        "name": name,
        "lengths": [_length(label, row) for label, row in [("all", found), *by_length]],
        "legend": figures.stacked(_verdicts(found)),
        "reasons": [(title, _reasons(rows, asked)) for title, rows in reasons.items() if rows],
        "labels": [_labels(about, row) for about, row in (found.get("labels") or {}).items() if row],
        "numbers": [_numbers(about, row) for about, row in (found.get("numbers") or {}).items() if row],
        "repeats": _repeats(found.get("repeats") or {}),
    }


def _length(label: str, row: Figures) -> dict[str, Any]:
    shares = [_share(row.get(key), row.get("asked")) for key in ("well_formed", "verified", "grounded", "empty")]
    cells = [counted(row.get("asked")), *shares, _share(row.get("parts_verified"), row.get("parts"))]
    return {"label": label, "cells": cells, "bar": figures.stacked(_verdicts(row))}


def _verdicts(row: Figures) -> dict[str, Any]:
    """How many readings have each verdict; none where a count is not known."""
    keys = ("grounded", "verified", "empty", "well_formed", "asked")
    found = [n for key in keys if is_number(n := row.get(key))]
    if len(found) < len(keys):
        return {}
    grounded, verified, empty, well_formed, asked = found
    counts = (grounded, verified - grounded - empty, empty, well_formed - verified, asked - well_formed)
    return dict(zip(VERDICTS, counts, strict=True))


def _reasons(rows: Iterable[Figures], asked: Any) -> list[dict[str, Any]]:
    return [
        {
            "reason": str(row.get("reason") or DASH),
            "n": counted(row.get("n")),
            "share": _share(row.get("n"), asked),
            "examples": [(str(e.get("sentence")), str(e.get("raw"))) for e in row.get("examples") or []],
        }
        for row in list(rows)[:ROWS]
    ]


def _labels(about: str, found: Figures) -> dict[str, Any]:
    rows = [
        {
            "label": str(row.get("label")),
            "n": counted(row.get("n")),
            "share": row["n"] / found["n"] if is_number(row.get("n")) and found.get("n") else None,
            "distinct": _about(row, "distinct"),
            "commonest": _texts(row.get("commonest")),
        }
        for row in (found.get("rows") or [])[:ROWS]
    ]
    named, several = "distinct" in found, ""
    if named:
        several = (
            f"{_about(found, 'distinct')} different ones; {_about(found, 'shared')} of {counted(found.get('n'))} stand "
            "with several sentences"
        )
    return {"about": about, "named": named, "rows": rows, "several": several}


def _numbers(about: str, row: Figures) -> tuple[str, list[str]]:
    whole = [counted(row.get(key)) for key in ("median", "p90", "most")]
    return about, [counted(row.get("n")), number(row.get("mean"), 1), *whole]


def _repeats(found: Figures) -> str:
    same = _texts(found.get("commonest"))
    return (
        f"Of {counted(found.get('n'), 'reading')} that hold something, {_about(found, 'shared')} are word for word as "
        f"that of another sentence{'' if same == DASH else f': {same}'}."
    )


def _gold(gold: Figures) -> dict[str, Any]:
    rows = [
        (
            f"{part}, {found.get('file') or DASH}" + (f", asked in {found['asked_in']}" if "asked_in" in found else ""),
            counted(found.get("n")),
            [percent(found.get(key)) for key in _GOLD],
            span(found.get("low"), found.get("high")),
        )
        for part, found in gold.items()
        if found
    ]
    differs = any(found.get("same_teacher") is False for found in gold.values() if found)
    return {"rows": rows, "columns": list(_GOLD.values()), "differs": differs}


def _share(n: Any, total: Any) -> str:
    return percent(n / total) if is_number(n) and is_number(total) and total else DASH


def _about(found: Figures, key: str) -> str:
    """A count, said to be an estimate where it is one."""
    value = get(found, key)
    return f"{'about ' if found.get('exact') is False and is_number(value) else ''}{counted(value)}"


def _texts(found: Any) -> str:
    return ", ".join(f"‘{text.get('text')}’ ({counted(text.get('n'))})" for text in found or []) or DASH


def _scripts(found: Any) -> str:
    return ", ".join(f"{script} {counted(n)}" for script, n in (found or {}).items()) or DASH
