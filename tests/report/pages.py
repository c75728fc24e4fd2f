"""What the report's tests render: small summaries, old and full, readings, and text that would like to run."""

import json
from html.parser import HTMLParser
from typing import Any

import numpy as np

from brd.evaluation.comparison import holm, item_differences, macro_effect, paired
from brd.evaluation.scorecard import overall
from brd.evaluation.statistics import Outcomes, figures
from brd.report.build import render

HOSTILE = (
    "<script>alert(1)</script></script><img src=x onerror=\"document.title='owned'\"> {{ 7 * 7 }} {% raw %} & '\"` "
    "-->]]>\u2028\u2029\u202e\x00\U0001f600 " + "w" * 300
)


def a_task(accuracy: float, predicted: dict[str, int]) -> dict[str, Any]:
    n = sum(predicted.values())
    return {
        "accuracy": accuracy,
        "standard_error": (accuracy * (1 - accuracy) / n) ** 0.5,
        "n": n,
        "majority": 0.51,
        "chance": 0.5,
        "predicted": predicted,
        "gold": {"no": 49, "yes": 51},
    }


def an_arm(accuracy: float, loss: float, well_formed: float, yes: int) -> dict[str, Any]:
    ner = {"n": 50, "loss": loss, "well_formed": well_formed, "verified": well_formed, "empty": well_formed / 4}
    qra = {"n": 50, "loss": loss, "well_formed": well_formed, "verified": well_formed / 2, "distinct_questions": 20}
    reading = {
        "loss": loss,
        "original_loss": 3.4,
        "well_formed": well_formed,
        "verified": well_formed * 0.75,
        "entity_f1": 0.4,
        "answer_f1": 0.5,
        "behaviors": {"ner": ner, "qra": qra},
    }
    return {
        "about": "what it is",
        "tasks": {"boolq": a_task(accuracy, {"no": 100 - yes, "yes": yes})},
        "macro_average": accuracy,
        "reading": reading,
        "reading_prompted": None,
    }


def a_summary() -> dict[str, Any]:
    counts = {"asked": 3, "well_formed": 2, "verified": 1, "rejected": 1, "empty": 0, "parts": 3, "parts_verified": 1}
    return {
        "name": "small",
        "arms": {
            "base": an_arm(0.51, 3.42, 0.0, yes=98),
            "further": an_arm(0.52, 3.38, 0.02, yes=55),
            "brd": an_arm(0.81, 2.31, 0.94, yes=52),
        },
        "readings": {b: {**counts, "reasons": {"entity repeated": 1}} for b in ("ner", "qra")},
        "text": {"documents": 4, "sentences_train": 2, "sentences_held_out": 1},
        "seconds": {"read": 3.5, "train": 75.0},
        "peak_rss_mb": 900.5,
        "trained_tokens": {"base": 0, "further": 4096, "brd": 4096},
        "steps": {"base": 0, "further": 2, "brd": 2},
        "passes": {"base": 0.0, "further": 1.0, "brd": 1.0},
        "notes": ["a note"],
    }


# What each arm knows, and how much it prefers the first label.
ARMS = {"base": (0.1, 2.5), "further": (0.2, 1.5), "brd": (1.2, 0.4)}
TASKS: dict[str, tuple[int, tuple[str, ...] | None, tuple[str, ...]]] = {
    "sst2": (80, (" negative", " positive"), ("review", "question")),
    "cb": (56, (" yes", " no", " maybe"), ("plain",)),
    "piqa": (60, None, ("plain",)),
}


def some_outcomes(n: int, labels: tuple[str, ...] | None, skill: float, bias: float, seed: int) -> Outcomes:
    width = len(labels or "ab")
    credits = np.eye(width)[np.random.default_rng(n).integers(width, size=n)]
    values = np.random.default_rng(seed).normal(size=(n, width)) + skill * credits
    values[:, 0] += bias if labels else 0
    return Outcomes(tuple(f"item-{i}" for i in range(n)), values, credits, values.argmax(axis=1), labels)


def a_full_summary() -> dict[str, Any]:
    """A summary as a run writes it now, from random answers."""
    summary = a_summary()
    answers: dict[str, dict[str, Outcomes]] = {arm: {} for arm in ARMS}
    for place, (arm, (skill, bias)) in enumerate(ARMS.items()):
        tasks = {}
        for name, (n, labels, templates) in TASKS.items():
            for order, template in enumerate(templates):
                outcomes = some_outcomes(n, labels, skill, bias, 100 * place + n + order)
                answers[arm][f"{name}.{template}"] = outcomes
                odds = np.exp([bias] + [0.0] * (len(labels or "ab") - 1))
                tasks[name if order == 0 else f"{name}/{template}"] = {
                    **{"task": name, "template": template, "shots": 0, "metric": "token_mean"},
                    **figures(outcomes, odds / odds.sum() if labels else None).as_dict(),
                    "truncated": 12 if name == "cb" else 0,
                    "near_ties": place if name == "sst2" else 0,
                    "near_tie_items": ["item-3", "item-9"][:place] if name == "sst2" else [],
                }
        summary["arms"][arm] |= {"tasks": tasks, **overall(list(tasks.values()))}
    pairs = {arm: {name: (answers[arm][name], answers["brd"][name]) for name in answers[arm]} for arm in answers}
    summary["comparisons"] = {f"brd - {arm}": a_comparison(arm, pairs[arm]) for arm in ("base", "further")}
    return summary


def a_comparison(arm: str, pairs: dict[str, tuple[Outcomes, Outcomes]]) -> dict[str, Any]:
    rows = {name: paired(*pair).as_dict() for name, pair in pairs.items()}
    for row, adjusted in zip(rows.values(), holm([row["p"] for row in rows.values()]), strict=True):
        row["p_holm"] = adjusted
    by_task: dict[str, list[Any]] = {}
    for name, pair in pairs.items():
        by_task.setdefault(name.split(".")[0], []).append(item_differences(*pair))
    macro = macro_effect([np.mean(found, axis=0) for found in by_task.values()])
    return {"a": arm, "b": "brd", "tasks": rows, "macro": macro.as_dict()}


def a_reading(sentence: int, behavior: str, verdict: str, **more: Any) -> dict[str, Any]:
    contents: dict[str, Any] = {
        "ner": {"entities": [{"text": "Ada", "type": "person", "description": "a reader", "start": 2, "end": 5}]},
        "qra": {"question": f"Who reads in sentence {sentence}?", "answer": "Ada reads."},
    }
    return {
        "document": "a.txt",
        "paragraph": 0,
        "sentence": sentence,
        "text": f"\U0001f600\nAda  reads number {sentence}.",
        "behavior": behavior,
        "verdict": verdict,
        "reason": "" if verdict == "verified" else "entity repeated",
        "content": contents[behavior] if verdict != "malformed" else None,
        "raw": f" raw {behavior} {sentence}",
        "held_out": sentence == 2,
        **more,
    }


READINGS = [
    a_reading(0, "ner", "verified"),
    a_reading(0, "qra", "rejected"),
    a_reading(1, "ner", "rejected"),
    a_reading(1, "qra", "verified"),
    a_reading(2, "ner", "malformed"),
    a_reading(2, "qra", "verified"),
]
PROVENANCE: dict[str, Any] = {"started": "2025-01-02T03:04:05+00:00", "versions": {"torch": "2"}, "seed": 7}
RECIPE: dict[str, Any] = {
    "name": "small",
    "text": {"language": "en"},
    "teacher": {"model": "teachers/big"},
    "student": {"model": "little"},
}
LOSSES = {"further": [(1, 3.5), (2, 3.4)], "brd": [(1, 3.0), (2, 2.5)]}


def a_page(**changes: Any) -> str:
    given = {"summary": a_summary(), "provenance": PROVENANCE, "recipe": RECIPE, "readings": READINGS, "losses": LOSSES}
    return render(**{**given, "audit": an_audit(), **changes})


def each_value(tree: Any, change: Any) -> Any:
    """A copy of a tree with its leaves changed."""
    if isinstance(tree, dict):
        return {key: each_value(value, change) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [each_value(value, change) for value in tree]
    return change(tree)


def hostile(tree: Any) -> Any:
    return each_value(tree, lambda leaf: HOSTILE if isinstance(leaf, str) else leaf)


def hostile_page() -> str:
    summary = hostile(a_full_summary())
    for arm in summary["arms"].values():
        task = arm["tasks"].pop("sst2")
        arm["tasks"][HOSTILE] = {**task, "predicted": {HOSTILE: 99, "no": 1}}
        arm["spread"] = {HOSTILE: arm["spread"]["sst2"]}
    summary["arms"] = {HOSTILE: summary["arms"]["base"], "brd": summary["arms"]["brd"]}
    rows = summary["comparisons"]["brd - base"]["tasks"]
    pair = {"a": HOSTILE, "b": "brd", "tasks": {HOSTILE: rows["sst2.review"], **rows}}
    summary["comparisons"] = {HOSTILE: {**summary["comparisons"]["brd - base"], **pair}}
    for counts in summary["readings"].values():
        counts["reasons"] = {HOSTILE: 3}
    summary["seconds"] = {HOSTILE: 1.0}
    kept = ("behavior", "verdict", "held_out")
    readings = [{**hostile(r), **{key: r[key] for key in kept}} for r in READINGS]
    readings[0]["document"] = "bad name \udcff"
    audit = hostile(an_audit())
    for behavior in audit["behaviors"].values():
        behavior["labels"] = {HOSTILE: behavior["labels"]["type of entity"]}
        behavior["numbers"] = {HOSTILE: behavior["numbers"]["words of the answer"]}
    audit["behaviors"][HOSTILE], audit["gold"][HOSTILE] = audit["behaviors"].pop("qra"), audit["gold"].pop("answers")
    audit["sentences"]["scripts"] = {HOSTILE: 1}
    return a_page(
        summary=summary,
        provenance={**hostile(PROVENANCE), HOSTILE: HOSTILE},
        recipe=hostile(RECIPE) | {"name": "\udcff"},
        readings=readings,
        losses={HOSTILE: [(1, 2.0), (2, 1.0)]},
        audit=audit,
    )


def an_audit() -> dict[str, Any]:
    counts = {
        "asked": 3, "well_formed": 2, "verified": 1, "grounded": 0, "empty": 0, "parts": 3, "parts_verified": 1,
    }  # fmt: skip
    one = {"n": 4, "distinct": 3, "shared": 2, "exact": True, "commonest": [{"text": "Ada Berg", "n": 2}]}
    about = {**one, "exact": False}
    reason = {"reason": "not a name", "n": 1, "examples": [{"sentence": "Rain fell.", "raw": " rain (event)"}]}
    behavior = {
        **counts,
        "not_asked": 0,
        "by_length": [{"words": "1 to 8", **counts}, {"words": "40 or more", **dict.fromkeys(counts, 0)}],
        "reasons": [reason],
        "dropped": [reason],
        "repeats": one,
        "labels": {
            "type of entity": {**about, "rows": [{"label": "person", **about}, {"label": "work", "n": 1}]},
            "question is about": {"n": 2, "rows": [{"label": "content", "n": 2}]},
        },
        "numbers": {"words of the answer": {"n": 4, "mean": 3.5, "median": 3, "p90": 5, "most": 9}},
        "scripts": {"Latin": 3},
        "other_scripts": [{**reason, "reason": "Han"}],
    }
    f1 = {"f1": 0.5, "low": 0.25, "high": 0.75}
    return {
        "run": "small",
        "finished": True,
        "language": "en",
        "sentences": {
            "places": 4, "distinct": 3, "repeated": 2, "scripts": {"Latin": 4},
            "commonest": [{"text": "Ada reads.", "n": 2}],
        },
        "other_readings": 7,
        "behaviors": {"ner": behavior, "qra": behavior},
        "gold": {
            "entities": {"file": "gold.iob2", "same_teacher": True, "n": 9, **f1, "precision": 0.625, "recall": None},
            "answers": {"file": "squad.json", "same_teacher": False, "n": 8, **f1, "exact_match": 0.375},
        },
    }  # fmt: skip


class Page(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._raw = ""
        self.data: dict[str, Any] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._raw = str(dict(attrs).get("id", tag)) if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._raw = ""

    def handle_data(self, data: str) -> None:
        if self._raw == "data":
            self.data = json.loads(data)
        elif not self._raw:
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def without_space(text: str) -> str:
    return "".join(text.replace("\x00", "").replace("�", "").split())


def words(html: str) -> str:
    """The text of a page with single spaces."""
    return " ".join(Page(html).text.split())
