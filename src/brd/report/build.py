"""report.html: a run on one page that opens without a network. Words about the results are computed from them."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from brd.reading.behavior import one_line
from brd.reading.ner import TYPES
from brd.report import figures
from brd.report.figures import DASH, is_number, number, percent

# So many sentences are embedded for browsing, so many of them held-out ones where there are enough of both.
EMBEDDED_SENTENCES = 2000
EMBEDDED_HELD_OUT = 400
# From this share of one label on, a model is said to give always the same answer.
CONSTANT = 0.95
# Two-sided 5 % test, 80 % power: a difference is found in four runs of five when it is so many standard errors.
DETECTABLE = 2.8
BEHAVIOR_NAMES = {"ner": "named entities", "qra": "questions and answers"}
# Columns of a behavior's table of reading skill that only some behaviors have.
OPTIONAL_COLUMNS = {"empty": "of all: ‘none’", "distinct_questions": "distinct questions"}

Figures = Mapping[str, Any]


def render(
    summary: dict[str, Any],
    provenance: dict[str, Any],
    recipe: dict[str, Any],
    readings: list[dict[str, Any]],
    losses: dict[str, list[tuple[int, float]]],
) -> str:
    """The page of a run, as one self-contained HTML document.

    ``summary`` and ``provenance`` are the contents of summary.json and run.json, ``recipe`` the resolved recipe,
    ``readings`` the sentences' readings in the order of the corpus, ``losses`` each arm's (step, training loss).
    Figures that are None or missing are shown as a dash. All strings are data: escaped, never run.
    """
    environment = Environment(
        loader=PackageLoader("brd.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "duration": figures.duration}
    style, script = (Markup(_template(name)) for name in ("report.css", "report.js"))
    browser = _browser(readings, str(_get(recipe, "text", "language") or ""))
    page = environment.get_template("report.html").render(
        style=style,
        script=script,
        policy=f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}; base-uri 'none'; "
        "form-action 'none'",
        name=summary.get("name") or "run",
        arms=summary.get("arms") or {},
        story=_story(summary, recipe),
        findings=_findings(summary),
        funnel=_funnel(summary),
        tasks=_task_table(summary),
        balance=_balance(summary),
        skill=_skill(summary),
        plot=figures.loss_plot(losses),
        training=[(arm, *(_get(summary, k, arm) for k in ("steps", "trained_tokens", "passes"))) for arm in losses],
        seconds=summary.get("seconds") or {},
        peak=summary.get("peak_rss_mb"),
        limits=_limits(summary, provenance, recipe),
        notes=summary.get("notes") or [],
        browser=browser,
        data=_embedded(browser),
        recipe=_yaml(recipe),
        provenance=_yaml(provenance),
        started=provenance.get("started") or DASH,
        behavior_names=BEHAVIOR_NAMES,
    )
    # File names that are no UTF-8 come with lone surrogates, which no UTF-8 page can hold.
    return page.encode("utf-8", "replace").decode("utf-8")


def _template(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """The content-security-policy source that allows exactly this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _yaml(value: Any) -> str:
    plain = json.loads(json.dumps(value, default=str))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)


def _embedded(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _get(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _count(value: Any, noun: str = "") -> str:
    if not is_number(value):
        return f"an unknown number of {noun}s" if noun else DASH
    return f"{value:,.0f} {noun}{'' if value == 1 or not noun else 's'}".strip()


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _model(recipe: Figures, who: str) -> str:
    """A model's name; of a path, its last part."""
    return (str(_get(recipe, who, "model") or DASH).rstrip("/")).rsplit("/", 1)[-1]


# What is compared with what.


def _focus(arms: Sequence[str]) -> tuple[str, list[str]]:
    """The arm the run is about, and the arms it is held against."""
    focus = "brd" if "brd" in arms else arms[-1]
    controls = [arm for arm in ("base", "further") if arm in arms and arm != focus]
    return focus, controls or [arm for arm in arms if arm != focus][:1]


def _macro_error(arm: Figures) -> float | None:
    return figures.mean_error([figures.task_error(task) for task in (arm.get("tasks") or {}).values()])


def _well_formed_error(arm: Figures) -> float | None:
    behaviors = (_get(arm, "reading", "behaviors") or {}).values()
    return figures.mean_error([figures.share_error(b.get("well_formed"), b.get("n")) for b in behaviors])


def _verdict(difference: float, error: float | None) -> str:
    if error is None:
        return "no standard error is known"
    return "within noise" if abs(difference) <= 2 * error else "more than two standard errors"


def _versus(values: Mapping[str, tuple[Any, float | None]], scale: float, digits: int, unit: str) -> list[str]:
    """Sentences on how the arm in focus stands against its controls."""
    focus, controls = _focus(list(values))
    mine, my_error = values[focus]
    said = []
    for arm in controls:
        theirs, error = values[arm]
        if not is_number(mine) or not is_number(theirs):
            said.append(f"{focus} against {arm}: not measured.")
            continue
        difference, error = scale * (mine - theirs), figures.difference_error(my_error, error)
        sign = "+" if difference > 0 else ""
        known = "" if error is None else f" ± {number(scale * error, digits)}"
        judged = "" if unit == "nats" else f", {_verdict(difference, None if error is None else scale * error)}"
        said.append(f"{focus} against {arm}: {sign}{number(difference, digits)}{known} {unit}{judged}.")
    return said


def _finding(title: str, about: str, values: Mapping[str, tuple[Any, float | None]], scale: float) -> dict[str, Any]:
    digits = 1 if scale == 100 else 2
    rows = [
        (arm, number(scale * v, digits) if is_number(v) else DASH, number(scale * e, digits) if e is not None else "")
        for arm, (v, e) in values.items()
    ]
    drawn = figures.dots(list(values.values()))
    said = _versus(values, scale, digits, "points" if scale == 100 else "nats")
    return {"title": title, "about": about, "rows": list(zip(rows, drawn, strict=True)), "said": said}


def _findings(summary: Figures) -> list[dict[str, Any]]:
    arms: dict[str, Any] = summary.get("arms") or {}
    if not arms:
        return []
    loss = {arm: (_get(a, "reading", "loss"), None) for arm, a in arms.items()}
    form = {arm: (_get(a, "reading", "well_formed"), _well_formed_error(a)) for arm, a in arms.items()}
    macro = {arm: (a.get("macro_average"), _macro_error(a)) for arm, a in arms.items()}
    found = [
        _finding(
            "Reading loss",
            "nats a token on the teacher’s verified readings of held-out text; lower is better",
            loss,
            1,
        ),
        _finding("Well-formed readings", "% of the readings that a student writes by itself, held-out text", form, 100),
        _finding("Macro average", "% accuracy over the tasks, zero-shot, none seen before the test", macro, 100),
    ]
    found[0]["said"].append("The losses have no standard error.")
    prompted = {arm: _get(a, "reading_prompted", "well_formed") for arm, a in arms.items()}
    if any(is_number(v) for v in prompted.values()):
        shares = _listed([f"{arm} {percent(v, 0)} %" for arm, v in prompted.items()])
        found[1]["said"].append(f"With the teacher’s few-shot prompt in front: {shares}.")
    return found


def _story(summary: Figures, recipe: Figures) -> list[str]:
    """What was done, in a few sentences."""
    text, arms = summary.get("text") or {}, summary.get("arms") or {}
    names = [f"{BEHAVIOR_NAMES.get(b, b)} ({b})" for b in summary.get("readings") or {}]
    train, held_out = text.get("sentences_train"), text.get("sentences_held_out")
    said = [
        f"The teacher, {_model(recipe, 'teacher')}, read {_count(train, 'sentence')} to train on and "
        f"{_count(held_out, 'sentence')} held out, from {_count(text.get('documents'), 'source text')}, for "
        f"{_listed(names) if names else 'no behavior'}.",
        f"The student is {_model(recipe, 'student')}; it was tested in {_count(len(arms), 'arm')}, zero-shot, on "
        "tasks that it had not seen, and on reading held-out text.",
    ]
    tokens = {arm: n for arm, n in (summary.get("trained_tokens") or {}).items() if is_number(n) and n > 0}
    if tokens and len(set(tokens.values())) == 1:
        verb = "each trained" if len(tokens) > 1 else "trained"
        said.append(f"{_listed(list(tokens))} {verb} on {_count(next(iter(tokens.values())), 'token')}.")
    elif tokens:
        said.append(f"Trained tokens: {_listed([f'{arm} {_count(n)}' for arm, n in tokens.items()])}.")
    return said


# Tables.


def _funnel(summary: Figures) -> list[dict[str, Any]]:
    text = summary.get("text") or {}
    parts = [text.get("sentences_train"), text.get("sentences_held_out")]
    sentences = sum(parts) if all(is_number(p) for p in parts) else None
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


def _task_table(summary: Figures) -> dict[str, Any]:
    """Arms by tasks. A mark says that a figure is more than two standard errors from the first arm's."""
    arms: dict[str, Any] = summary.get("arms") or {}
    names = list(dict.fromkeys(name for a in arms.values() for name in a.get("tasks") or {}))
    any_arm = {name: next(a["tasks"][name] for a in arms.values() if name in (a.get("tasks") or {})) for name in names}
    first = next(iter(arms), None)
    rows = []
    for arm, a in arms.items():
        cells = []
        for name in names:
            task, base = _get(a, "tasks", name) or {}, _get(arms[first], "tasks", name) or {} if first else {}
            cells.append(
                _cell(task.get("accuracy"), task.get("stderr"), _mark(task, base, figures.task_error, "accuracy"))
            )
        mark = _mark(a, arms[first] if first else {}, _macro_error, "macro_average")
        rows.append((arm, [*cells, _cell(a.get("macro_average"), _macro_error(a), mark)]))
    trivial = []
    for label, key in (("commonest label", "majority"), ("chance", "chance")):
        values = [any_arm[name].get(key) for name in names]
        mean = sum(values) / len(values) if values and all(is_number(v) for v in values) else None
        trivial.append((label, [percent(v) for v in [*values, mean]]))
    columns = [(name, _count(any_arm[name].get("n"))) for name in names]
    return {"columns": columns, "rows": rows, "trivial": trivial, "first": first}


def _cell(value: Any, error: Any, mark: str) -> tuple[str, str, str]:
    return percent(value), percent(error) if is_number(error) else "", mark


def _mark(mine: Figures, base: Figures, error_of: Any, key: str) -> str:
    error = figures.difference_error(error_of(mine), error_of(base))
    if error is None or not is_number(mine.get(key)) or not is_number(base.get(key)):
        return ""
    difference = mine[key] - base[key]
    return "" if abs(difference) <= 2 * error else ("▲" if difference > 0 else "▼")


def _constant(counts: Figures) -> tuple[str, float] | None:
    """The label that nearly all predictions are, and its share."""
    known = {label: n for label, n in counts.items() if is_number(n)}
    total = sum(known.values())
    if len(known) < 2 or not total:
        return None
    label = max(known, key=lambda k: known[k])
    return (label, known[label] / total) if known[label] / total >= CONSTANT else None


def _balance(summary: Figures) -> list[tuple[str, list[dict[str, Any]]]]:
    """For each task: the gold labels (where known) and every arm's predictions, as stacked bars."""
    arms: dict[str, Any] = summary.get("arms") or {}
    tasks: dict[str, list[dict[str, Any]]] = {}
    for arm, a in arms.items():
        for name, task in (a.get("tasks") or {}).items():
            rows = tasks.setdefault(name, [])
            if not rows and task.get("gold"):
                rows.append({"arm": None, "bar": figures.stacked(task["gold"]), "constant": None})
            counts = task.get("predicted") or {}
            rows.append({"arm": arm, "bar": figures.stacked(counts), "constant": _constant(counts)})
    return list(tasks.items())


def _skill(summary: Figures) -> dict[str, Any]:
    """Reading skill overall and by behavior: (arm, how, figures) rows, prompted ones where measured."""
    arms: dict[str, Any] = summary.get("arms") or {}
    ways = (("reading", "as it stands"), ("reading_prompted", "few-shot prompt"))
    rows = [(arm, how, a[key]) for key, how in ways for arm, a in arms.items() if a.get(key)]
    behaviors: dict[str, Any] = {}
    for name in dict.fromkeys(n for _, _, f in rows for n in f.get("behaviors") or {}):
        mine = [(arm, how, _get(f, "behaviors", name) or {}) for arm, how, f in rows]
        extra = [(key, label) for key, label in OPTIONAL_COLUMNS.items() if any(key in f for _, _, f in mine)]
        # 'none' is well formed and never wrong in its words: questions have no such answer, entities do.
        extra = [(k, label) for k, label in extra if k != "empty" or any(f.get(k) for _, _, f in mine) or name == "ner"]
        behaviors[name] = {"rows": mine, "extra": extra}
    return {"rows": rows, "behaviors": behaviors}


def _limits(summary: Figures, provenance: Figures, recipe: Figures) -> list[str]:
    """What the run can and cannot tell, from its own numbers."""
    arms: dict[str, Any] = summary.get("arms") or {}
    said = _detectable(arms)
    said += _weak_tasks(arms)
    seed = provenance.get("seed")
    said.append(
        f"One seed{'' if seed is None else f' ({seed})'}: how much a second training of the same arm would differ is "
        "not measured, and the standard errors do not hold it."
    )
    teacher, student = _model(recipe, "teacher"), _model(recipe, "student")
    said.append(
        f"One teacher, {teacher}. Reading loss and F1 measure agreement with this teacher’s verified readings, its "
        "oversights included; they do not measure truth."
    )
    if teacher == student and teacher != DASH:
        said.append(
            "Teacher and student are the same model: it can teach the form of a reading and what verification "
            "selects, not knowledge that the student lacks."
        )
    sentences = _get(summary, "text", "sentences_train")
    if is_number(sentences) and sentences < 5_000_000:
        said.append(f"The paper’s student read 5,000,000 sentences, this one {_count(sentences)}.")
    return said


def _detectable(arms: Figures) -> list[str]:
    if len(arms) < 2:
        return []
    focus, _ = _focus(list(arms))
    tasks = {n: (figures.task_error(t), t.get("n")) for n, t in (arms[focus].get("tasks") or {}).items()}
    needed = {name: DETECTABLE * 2**0.5 * error for name, (error, _) in tasks.items() if error is not None}
    macro = _macro_error(arms[focus])
    if not needed or macro is None:
        return []
    low, high = min(needed, key=lambda k: needed[k]), max(needed, key=lambda k: needed[k])
    sizes = [f"{name} {percent(needed[name])} points ({_count(tasks[name][1])} items)" for name in {low: 0, high: 0}]
    return [
        "To be told apart in four runs of five (5 % two-sided test, arms taken as independent), two arms must differ "
        f"by about {percent(DETECTABLE * 2**0.5 * macro)} points of macro average; on single tasks, "
        f"{' to '.join(sizes)}. Smaller differences can be real and stay unseen. The arms answer the same items, so a "
        "paired test on the item scores would see a little more."
    ]


def _weak_tasks(arms: Figures) -> list[str]:
    said, constant, useless = [], [], []
    names = list(dict.fromkeys(name for a in arms.values() for name in a.get("tasks") or {}))
    for name in names:
        shown = {arm: a["tasks"][name] for arm, a in arms.items() if name in (a.get("tasks") or {})}
        same = {arm: c for arm, t in shown.items() if (c := _constant(t.get("predicted") or {}))}
        constant += [f"{arm} on {name} (‘{label}’, {percent(share, 0)} %)" for arm, (label, share) in same.items()]
        known = [t for t in shown.values() if is_number(t.get("accuracy")) and is_number(t.get("majority"))]
        if known and all(t["accuracy"] - t["majority"] <= 2 * (figures.task_error(t) or 0) for t in known):
            useless.append(name)
    if constant:
        said.append(
            f"These give nearly always the same answer: {_listed(constant)}. Such an accuracy tells of the labels in "
            "the test set, not of the model."
        )
    if useless:
        said.append(
            f"On {_listed(useless)} no arm is above always giving the commonest label by more than two standard "
            "errors: differences between arms there can be a matter of which label a model leans to."
        )
    return said


# The browser of readings.


def _browser(readings: Sequence[Figures], language: str) -> dict[str, Any]:
    """Sentences with their readings, as the page's script reads them, and how many of how many are there."""
    sentences: dict[tuple[Any, ...], dict[str, Any]] = {}
    for reading in readings:
        part = "held_out" if reading.get("held_out") else "train"
        place = (part, reading.get("document"), reading.get("paragraph"), reading.get("sentence"))
        if place not in sentences:
            where = dict(zip(("part", "document", "paragraph", "sentence"), place, strict=True))
            sentences[place] = {**where, "text": one_line(reading.get("text") or ""), "readings": []}
        kept = {key: reading.get(key) for key in ("behavior", "verdict", "reason", "content")}
        # What was verified is shown from its content.
        raw = {} if kept["verdict"] == "verified" else {"raw": reading.get("raw") or "", "content": None}
        sentences[place]["readings"].append(kept | raw)
    every = list(sentences.values())
    shown = _sample(every)
    found = [reading for sentence in shown for reading in sentence["readings"]]
    return {
        "language": language,
        "types": list(TYPES),
        "total": len(every),
        "readings": len(found),
        "held_out": sum(s["part"] == "held_out" for s in shown),
        "behaviors": list(dict.fromkeys(r["behavior"] for r in found)),
        "reasons": sorted({r["reason"] for r in found if r["reason"]}),
        "sentences": shown,
    }


def _sample(sentences: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All, or where there are too many the first of each part."""
    if len(sentences) <= EMBEDDED_SENTENCES:
        return sentences
    held_out = sum(s["part"] == "held_out" for s in sentences)
    train = len(sentences) - held_out
    room = max(min(held_out, EMBEDDED_HELD_OUT), EMBEDDED_SENTENCES - train)
    left = {"held_out": room, "train": EMBEDDED_SENTENCES - room}
    kept = []
    for sentence in sentences:
        if left[sentence["part"]] > 0:
            left[sentence["part"]] -= 1
            kept.append(sentence)
    return kept
