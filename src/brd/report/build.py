"""report.html: a run on one page that opens without a network. Words about the results are computed from them."""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from brd.report import against, contrasts, figures, tasks
from brd.report.audit import audit as closer_look
from brd.report.browser import browser
from brd.report.figures import DASH, counted, get, is_number, macro_error, number, percent

# Two-sided 5 % test, 80 % power: a difference is found in four runs of five when it is so many standard errors.
DETECTABLE = 2.8
# From this share of empty or repeated readings on, a student's verified readings are said to hold little.
HOLLOW = 0.5
# From so many questions on, it is worth saying how many of them are the same.
MANY = 10
# So many arms on tasks are named one by one where they give nearly always the same answer.
LISTED = 12
BEHAVIOR_NAMES = {
    "ner": "named entities",
    "qra": "questions and answers",
    "paraphrase": "paraphrases",
    "implication": "implications",
    "relations": "relations",
}
Figures = Mapping[str, Any]


def render(
    summary: dict[str, Any],
    provenance: dict[str, Any],
    recipe: dict[str, Any],
    readings: list[dict[str, Any]],
    losses: dict[str, list[tuple[int, float]]],
    audit: Figures | None = None,
) -> str:
    """The page of a run, as one self-contained HTML document.

    ``summary`` and ``provenance`` are the contents of summary.json and run.json, ``recipe`` the resolved recipe,
    ``readings`` the sentences' readings in the order of the corpus, ``losses`` each arm's (step, training loss),
    ``audit`` the content of audit.json.
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
    languages = get(recipe, "reading", "languages") or [get(recipe, "text", "language") or ""]
    sentences = browser(readings, str(languages[0]) if len(languages) == 1 else "")
    page = environment.get_template("report.html").render(
        style=style,
        script=script,
        policy=f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}; base-uri 'none'; "
        "form-action 'none'",
        name=summary.get("name") or "run",
        arms=summary.get("arms") or {},
        story=_story(summary, recipe),
        findings=_findings(summary),
        funnel=figures.funnel(summary),
        audit=closer_look(audit),
        contrasts=contrasts.contrasts(summary),
        asked=tasks.how_asked(summary),
        accuracies=tasks.accuracies(summary),
        without_preference=tasks.without_preference(summary),
        more=tasks.more(summary),
        comparisons=tasks.comparisons(summary),
        spread=tasks.spread(summary),
        scoring_notes=tasks.notes(summary),
        balance=figures.balance(summary),
        skill=figures.skill(summary),
        gold=against.gold(summary),
        gold_asked_in=languages[0] if len(languages) > 1 else "",
        distances=against.distances(summary),
        distances_first=against.reference_arm(summary),
        plot=figures.loss_plot(losses),
        training=[(arm, *(get(summary, k, arm) for k in ("steps", "trained_tokens", "passes"))) for arm in losses],
        seconds=summary.get("seconds") or {},
        peak=summary.get("peak_rss_mb"),
        limits=_limits(summary, provenance, recipe),
        notes=summary.get("notes") or [],
        browser=sentences,
        data=_embedded(sentences),
        recipe=_yaml(recipe),
        provenance=_yaml(provenance),
        date=str(provenance.get("started") or DASH)[:10],
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


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _model(recipe: Figures, who: str) -> str:
    """A model's name; of a path, its last part."""
    name = str(get(recipe, who, "model") or DASH).removeprefix("embedded:").removeprefix("hub:")
    return name.rstrip("/").rsplit("/", 1)[-1]


# What is compared with what.


def _focus(arms: Sequence[str]) -> tuple[str, list[str]]:
    """The arm the run is about, and the arms it is held against."""
    focus = "brd" if "brd" in arms else arms[-1]
    controls = [arm for arm in ("base", "further") if arm in arms and arm != focus]
    return focus, controls or [arm for arm in arms if arm != focus][:1]


def _well_formed_error(arm: Figures) -> float | None:
    behaviors = (get(arm, "reading", "behaviors") or {}).values()
    return figures.mean_error([figures.share_error(b.get("well_formed"), b.get("n")) for b in behaviors])


def _verdict(difference: float, error: float | None) -> str:
    if error is None:
        return "no standard error is known"
    return "within noise" if abs(difference) <= 2 * error else "more than two standard errors"


def _versus(
    values: Mapping[str, tuple[Any, float | None]], scale: float, digits: int, unit: str, paired: Figures
) -> list[str]:
    """Sentences on how the arm in focus stands against its controls; ``paired`` differences go before others."""
    focus, controls = _focus(list(values))
    mine, my_error = values[focus]
    said = []
    for arm in controls:
        if arm in paired:
            said.append(f"{focus} against {arm}: {_paired(paired[arm])}.")
            continue
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


def _paired(found: Figures) -> str:
    span = tasks.signed_span(found["low"], found["high"])
    verdict = tasks.judged(found)
    called = verdict if verdict == tasks.NOT_DISTINGUISHABLE else f"distinguishably {verdict}"
    return f"{tasks.signed(found['difference'])} points (paired 95 % interval {span}), {called}"


def _finding(
    title: str,
    about: str,
    values: Mapping[str, tuple[Any, float | None]],
    scale: float,
    paired: Figures | None = None,
) -> dict[str, Any]:
    digits = 1 if scale == 100 else 2
    rows = [
        (arm, number(scale * v, digits) if is_number(v) else DASH, number(scale * e, digits) if e is not None else "")
        for arm, (v, e) in values.items()
    ]
    drawn = figures.dots(list(values.values()))
    said = _versus(values, scale, digits, "points" if scale == 100 else "nats", paired or {})
    return {"title": title, "about": about, "rows": list(zip(rows, drawn, strict=True)), "said": said}


def _findings(summary: Figures) -> list[dict[str, Any]]:
    arms: dict[str, Any] = summary.get("arms") or {}
    if not arms:
        return []
    loss = {arm: (get(a, "reading", "loss"), None) for arm, a in arms.items()}
    form = {arm: (get(a, "reading", "well_formed"), _well_formed_error(a)) for arm, a in arms.items()}
    macro = {arm: (a.get("macro_average"), macro_error(a)) for arm, a in arms.items()}
    about = f"% accuracy over the tasks, {tasks.how_asked(summary)}, none seen before the test"
    found = [
        _finding(
            "Reading loss",
            "nats a token on the teacher’s verified readings of held-out text; lower is better",
            loss,
            1,
        ),
        _finding("Well-formed readings", "% of the readings that a student writes by itself, held-out text", form, 100),
        _finding("Macro average", about, macro, 100, _paired_macros(summary)),
    ]
    found[0]["said"].append("The losses have no standard error.")
    prompted = {arm: get(a, "reading_prompted", "well_formed") for arm, a in arms.items()}
    if known := {arm: v for arm, v in prompted.items() if is_number(v)}:
        shares = _listed([f"{arm} {percent(v, 0)}\u00a0%" for arm, v in known.items()])
        found[1]["said"].append(f"With the teacher’s few-shot prompt in front: {shares}.")
    return found


def _paired_macros(summary: Figures) -> dict[str, Any]:
    """The macro-average's paired difference between the arm in focus and each control that it was compared with."""
    focus, controls = _focus(list(summary.get("arms") or {}))
    found = {arm: tasks.macro_difference(summary, focus, arm) for arm in controls}
    return {arm: difference for arm, difference in found.items() if difference}


def _story(summary: Figures, recipe: Figures) -> list[str]:
    """What was done, in a few sentences."""
    text, arms = summary.get("text") or {}, summary.get("arms") or {}
    names = [f"{BEHAVIOR_NAMES.get(b, b)} ({b})" for b in summary.get("readings") or {}]
    train, held_out = text.get("sentences_train"), text.get("sentences_held_out")
    said = [
        f"The teacher, {_model(recipe, 'teacher')}, read {counted(train, 'sentence')} to train on and "
        f"{counted(held_out, 'sentence')} held out, from {counted(text.get('documents'), 'source text')}, for "
        f"{_listed(names) if names else 'no behavior'}.",
        f"The student is {_model(recipe, 'student')}; it was tested in {counted(len(arms), 'arm')}, "
        f"{tasks.how_asked(summary)}, on tasks that it had not seen, and on reading held-out text.",
    ]
    if learnt := summary.get("task_inputs"):
        said.append(
            f"Not unseen: {_listed(learnt['arms'])} learnt from other inputs of {_listed(learnt['tasks'])} "
            "(of no item that is tested)."
        )
    if corpus := text.get("corpus"):
        on = ", ".join(f"{name} {counted(f['dropped'] + f['changed'])}" for name, f in corpus["filters"].items())
        said.append(
            f"Filters kept {counted(corpus['paragraphs_kept'])} of {counted(corpus['paragraphs_seen'], 'paragraph')} "
            f"of the corpus (dropped or changed: {on}); readings/dropped.parquet names them."
        )
    tokens = {arm: n for arm, n in (summary.get("trained_tokens") or {}).items() if is_number(n) and n > 0}
    if tokens and len(set(tokens.values())) == 1:
        said.append(f"Trained on {counted(next(iter(tokens.values())), 'token')} each: {_listed(list(tokens))}.")
    elif tokens:
        said.append(f"Trained tokens: {_listed([f'{arm} {counted(n)}' for arm, n in tokens.items()])}.")
    return said


def _limits(summary: Figures, provenance: Figures, recipe: Figures) -> list[str]:
    """What the run can and cannot tell, from its own numbers."""
    arms: dict[str, Any] = summary.get("arms") or {}
    said = _detectable(arms, bool(_paired_macros(summary)) if arms else False)
    said += _weak_tasks(arms)
    said += _hollow_readings(arms)
    seed = provenance.get("seed")
    said.append(
        "Only the contrasts hold how much a second training of the same arm would differ; no other standard error or "
        "interval here does."
        if contrasts.several_seeds(summary)
        else f"One seed{'' if seed is None else f' ({seed})'}: how much a second training of the same arm would "
        "differ is not measured, and no standard error or interval here holds it."
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
    sentences = get(summary, "text", "sentences_train")
    if is_number(sentences) and sentences < 5_000_000:
        said.append(f"The paper’s student read 5,000,000 sentences, this one {counted(sentences)}.")
    return said


def _detectable(arms: Figures, paired: bool) -> list[str]:
    if len(arms) < 2:
        return []
    focus, _ = _focus(list(arms))
    known = {n: (figures.task_error(t), t.get("n")) for n, t in (arms[focus].get("tasks") or {}).items()}
    needed = {name: DETECTABLE * 2**0.5 * error for name, (error, _) in known.items() if error is not None}
    macro = macro_error(arms[focus])
    if not needed or macro is None:
        return []
    low, high = min(needed, key=lambda k: needed[k]), max(needed, key=lambda k: needed[k])
    sizes = [f"{name} {percent(needed[name])} points ({counted(known[name][1])} items)" for name in {low: 0, high: 0}]
    see = "the paired comparisons see" if paired else "a paired test on the item scores would see"
    return [
        "To be told apart in four runs of five (5 % two-sided test, arms taken as independent), two arms must differ "
        f"by about {percent(DETECTABLE * 2**0.5 * macro)} points of macro average; on single tasks, "
        f"{' to '.join(sizes)}. Smaller differences can be real and stay unseen. The arms answer the same items, so "
        f"{see} a little more."
    ]


def _weak_tasks(arms: Figures) -> list[str]:
    said, constant, useless = [], [], []
    of: Counter[str] = Counter()
    names = list(dict.fromkeys(name for a in arms.values() for name in a.get("tasks") or {}))
    for name in names:
        shown = {arm: a["tasks"][name] for arm, a in arms.items() if name in (a.get("tasks") or {})}
        same = {arm: c for arm, t in shown.items() if (c := figures.constant(t.get("predicted") or {}))}
        of.update(same.keys())
        constant += [f"{arm} on {name} (‘{label}’, {percent(share, 0)}\u00a0%)" for arm, (label, share) in same.items()]
        known = [t for t in shown.values() if is_number(t.get("accuracy")) and is_number(t.get("majority"))]
        if known and all(t["accuracy"] - t["majority"] <= 2 * (figures.task_error(t) or 0) for t in known):
            useless.append(name)
    if len(constant) > LISTED:
        counts = _listed([f"{arm} on {of[arm]}" for arm in arms if of[arm]])
        constant = [f"{counts} of {len(names)} (tasks and templates; the section Tasks shows which)"]
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


def _hollow_readings(arms: Figures) -> list[str]:
    """Students whose verified readings say little: mostly 'none', or few different questions."""
    said = []
    for arm, a in arms.items():
        for f in (get(a, "reading", "behaviors") or {}).values():
            verified, empty, n, questions = (f.get(k) for k in ("verified", "empty", "n", "distinct_questions"))
            if not is_number(verified) or not verified:
                continue
            if is_number(empty) and empty / verified >= HOLLOW:
                said.append(f"{percent(empty / verified, 0)}\u00a0% of the entity readings of {arm} say ‘none’")
            written = round(verified * n) if is_number(n) else 0
            if is_number(questions) and written >= MANY and questions / written <= 1 - HOLLOW:
                said.append(f"{arm} wrote {written} questions, only {counted(questions)} of them distinct")
    return [f"Verified does not mean rich: {_listed(said)}."] if said else []
