"""A plan for a terminal."""

from collections.abc import Mapping
from typing import Any

from brd.evaluation.tables import grid


def tables(found: Mapping[str, Any]) -> str:
    """The tables of what ``plan`` returned."""
    reading, composing, training = found["reading"], found["composing"], found["training"]
    lines = [*_text(found["text"]), "", *_reading(found["teacher"], reading)]
    if reading["prices"]:
        lines += ["", *_prices(reading["prices"], reading["batch"])]
    if composing:
        lines += ["", *_composing(found["teacher"], composing)]
    if training:
        lines += ["", *_training(training)]
    lines += ["", *_disk(found["disk"]), "", "evaluation: not estimated"]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """In the unit that fits."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 120 * 60 else f"{seconds / 3600:.1f} h"


def _between(spent: Mapping[str, float]) -> str:
    return f"{duration(spent['expected'])} [{duration(spent['low'])}, {duration(spent['high'])}]"


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value / 1e3:.0f} kB"


def _text(text: Mapping[str, Any]) -> list[str]:
    train, held_out = text["sentences"]["train"], text["sentences"]["held_out"]
    about = "" if text["exact"] else "about "
    margin = f", ± {200 * text['error']:.0f} %" if text["error"] else ""
    lines = [
        f"text: {about}{_number(train)} sentences to train on, {about}{_number(held_out)} held out "
        f"({text['how']}{margin}); "
        f"{about}{_number(text['distinct'])} different ones; "
        f"{about}{_number(text['too_short'])} too short, {about}{_number(text['too_long'])} too long"
    ]
    names = {"train": "reading.sentences", "held_out": "reading.held_out_sentences"}
    for part, name in names.items():
        if text["sentences"][part] < 0.99 * text["wanted"][part]:
            lines.append(f"  fewer than {name} ({_number(text['wanted'][part])}): the corpus has no more")
    return lines


def _asked(what: str, teacher: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Cells of a table of questions."""
    server = teacher["kind"] in ("openai", "vllm")
    found = [
        [what, "known", "to ask", "tokens in", f"of them {'cached' if server else 'prefix'}", "tokens out", "time"]
    ]
    for name, row in rows.items():
        cells = ["", "", "", ""]
        if "tokens" in row:
            tokens = row["tokens"]
            least = "at most " if row.get("assumed") else ""
            shared = tokens["cached"] if server else row["prefix_tokens"]
            took = _between(row["seconds"]) if "seconds" in row else "not estimated"
            cells = [_number(tokens["input"]), _number(shared), least + _number(tokens["output"]), took]
        found.append([name, _number(row["known"]), _number(row["to_ask"]), *cells])
    return found


def _reading(teacher: Mapping[str, Any], reading: Mapping[str, Any]) -> list[str]:
    # What was asked for the plan is known by now.
    now = bool(reading["asked_now"])
    told = {name: {**row, "known": row["known"] + row["asked"] * now} for name, row in reading["behaviors"].items()}
    rows = _asked("reading", teacher, told)
    for cells, row in zip(rows, [{}, *told.values()], strict=True):
        share = f"{100 * row['verified']:.0f} (of {row['asked']})" if "verified" in row else ""
        cells.insert(-1, share if row else "verified %")
    if spent := reading["seconds"]:
        rows.append(["all", *[""] * 6, _between(spent)])
        lines = [
            grid(rows),
            f"time: {duration(spent['once'])} until the teacher is ready, {duration(spent['text'])} for going through "
            "the text; in brackets what sampling leaves open (95 %), at the speed that was seen",
        ]
    else:
        lines = [grid(rows), f"time: not estimated: {reading['untimed']}"]
    if reading["asked_now"]:
        lines.append(_kept(reading))
    else:
        lines.append("nothing was asked: measured by an earlier plan (--again asks anew)")
    if not reading["full"]:
        lines.append(
            f"the teacher was never full ({reading['at_once']} sentences at once): its speed then is an extrapolation; "
            "--sentences asks more"
        )
    if not reading["counted"]:
        lines.append("the server does not tell tokens: these are estimates")
    if reading["retries"]:
        lines.append(
            f"{reading['retries']} requests had to be repeated, which makes the time unsure: the server may bear fewer "
            "at once"
        )
    return lines


def _kept(asked: Mapping[str, Any]) -> str:
    return f"{asked['asked_now']} answers were asked for this; they are kept, and the run finds them"


def _composing(teacher: Mapping[str, Any], composing: Mapping[str, Any]) -> list[str]:
    told = {name: {**row, "known": row["known"] + row["asked"]} for name, row in composing["rows"].items()}
    rows = _asked("asked for arms", teacher, told)
    if spent := composing["seconds"]:
        rows.append(["all", *[""] * 5, _between(spent)])
    lines = [grid(rows)]
    if composing["untimed"]:
        lines.append(f"time: not estimated: {composing['untimed']}")
    if composing["asked_now"]:
        lines.append(_kept(composing))
    if any(row["assumed"] for row in told.values()):
        lines.append(
            "continuations: as many as it takes where all are as long as they may be, and rather more; none was asked, "
            "since which texts the run takes is not known before it has gone through the corpus"
        )
    return [*lines, *(_prices(composing["prices"], False) if composing["prices"] else [])]


def _prices(prices: Mapping[str, Any], batches: bool) -> list[str]:
    ways = {"one by one": prices, **({"batch interface": prices["batch"]} if "batch" in prices else {})}
    rows = [[f"price, {prices['currency']}", "in", "out", "together"]]
    for name, cost in ways.items():
        together = f"{_money(cost['total'])} ± {_money(cost['off'])}"
        rows.append([name, _money(cost["input"]), _money(cost["output"]), together])
    lines = [grid(rows)]
    if batches and "batch" not in prices:
        lines.append("teacher.server.batch: what the batch interface asks is not known (teacher.prices.batch)")
    elif batches:
        lines.append("teacher.server.batch: the run pays the batch interface; no cache is counted on")
    if prices["sample"]:
        lines.append(f"the answers that were asked for this, one by one, cost {_money(prices['sample'])}")
    return lines


def _money(value: float) -> str:
    return f"{value:,.2f}" if value >= 1 else f"{value:.4f}"


def _training(training: Mapping[str, Any]) -> list[str]:
    rows = [["training", "steps", "tokens", "time"]]

    def took(row: Mapping[str, Any]) -> str:
        return duration(row["seconds"]) if "seconds" in row else "not measured"

    for name, asked in training["signals"].items():
        rows.append([f"the teacher's pass for {name}", "", _number(asked["tokens"]), took(asked)])
    for name, arm in training["arms"].items():
        least = "at most " if arm.get("at_most") else ""
        rows.append([name, _number(arm["steps"]), least + _number(arm["tokens"]), took(arm)])
    lines = [grid(rows)]
    if costs := training["costs"]:
        lines[-1] += f"\nall: {_between(training['seconds'])}; {duration(training['once'])} of them once"
        for name, its in costs.items():
            told = f"{duration(its['start'])} to the first step, {duration(its['step'])} a step"
            saved = f"{duration(its['checkpoint'])} a checkpoint, {duration(its['end'])} to save at the end"
            lines.append(f"measured, as {name} trains: {told}, {saved}")
    if size := training["teacher_bytes"]:
        lines.append(f"memory: a teacher of distributions takes {_bytes(size)} beside what its student takes")
    return lines


def _disk(disk: Mapping[str, float]) -> list[str]:
    told = ", ".join(f"{name.replace('_', ' ')} {_bytes(value)}" for name, value in disk.items())
    return [f"disk: {told}; {_bytes(sum(disk.values()))} together at most"]
