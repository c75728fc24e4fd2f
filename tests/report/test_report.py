"""report.html: whatever the text and the figures, it stays inert, shows them, and works in a real browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from brd.report import figures
from brd.report.build import EMBEDDED_HELD_OUT, EMBEDDED_SENTENCES, render

HOSTILE = (
    "<script>alert(1)</script></script><img src=x onerror=\"document.title='owned'\"> {{ 7 * 7 }} {% raw %} & '\"` "
    "-->]]>\u2028\u2029\u202e\x00\U0001f600 " + "w" * 300
)


def a_task(accuracy: float, predicted: dict[str, int]) -> dict[str, Any]:
    n = sum(predicted.values())
    return {
        "accuracy": accuracy,
        "stderr": (accuracy * (1 - accuracy) / n) ** 0.5,
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
    return render(**{**given, **changes})


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
    summary = hostile(a_summary())
    for arm in summary["arms"].values():
        task = arm["tasks"].pop("boolq")
        arm["tasks"][HOSTILE] = {**task, "predicted": {HOSTILE: 99, "no": 1}}
    summary["arms"] = {HOSTILE: summary["arms"]["base"], "brd": summary["arms"]["brd"]}
    for counts in summary["readings"].values():
        counts["reasons"] = {HOSTILE: 3}
    summary["seconds"] = {HOSTILE: 1.0}
    kept = ("behavior", "verdict", "held_out")
    readings = [{**hostile(r), **{key: r[key] for key in kept}} for r in READINGS]
    readings[0]["document"] = "bad name \udcff"
    return a_page(
        summary=summary,
        provenance={**hostile(PROVENANCE), HOSTILE: HOSTILE},
        recipe=hostile(RECIPE) | {"name": "\udcff"},
        readings=readings,
        losses={HOSTILE: [(1, 2.0), (2, 1.0)]},
    )


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


def test_hostile_text_is_shown_and_stays_inert() -> None:
    html = hostile_page()
    page = Page(html)
    assert len(page.named("script")) == 2
    assert not page.named("img")
    assert not [attributes for _, attributes in page.elements if any(name.startswith("on") for name in attributes)]
    assert without_space(page.text).count(without_space(HOSTILE)) > 10
    assert "{{ 7 * 7 }}" in page.text
    assert page.data["sentences"][1]["readings"][0]["raw"] == HOSTILE
    html.encode("utf-8")


def test_nothing_is_fetched() -> None:
    page = Page(a_page())
    for tag, attributes in page.elements:
        # The policy allows the one style sheet only, so that a style attribute would do nothing.
        assert not {"src", "srcset", "style"} & attributes.keys(), (tag, attributes)
        for name in ("href", "action", "data", "poster"):
            link = attributes.get(name) or ""
            assert link.startswith("#") or not link or (tag == "a" and link.startswith("https://arxiv.org/")), link
    assert not page.named("link")
    assert not re.search(r"url\(|@import", a_page())
    policy = next(m["content"] for m in page.named("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy


def test_ids_are_unique_and_every_anchor_has_its_target() -> None:
    page = Page(a_page())
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    anchors = [str(a["href"])[1:] for a in page.named("a") if str(a["href"]).startswith("#")]
    assert {a for a in anchors if "=" not in a} <= set(ids)


def test_figures_that_were_not_measured_are_dashes() -> None:
    summary = each_value(a_summary(), lambda leaf: None if isinstance(leaf, int | float) else leaf)
    text = Page(a_page(summary=summary, losses={"brd": [(1, None), (2, float("nan"))]})).text
    assert figures.DASH in text
    assert not re.search(r"\b(None|nan|NaN|Undefined)\b", text.replace("‘None’", ""))


def test_a_run_without_anything() -> None:
    text = Page(render({}, {}, {}, [], {})).text
    assert "There are no readings." in text
    assert "No tasks were scored." in text


def test_the_words_follow_the_numbers() -> None:
    text = " ".join(Page(a_page()).text.split())
    assert "brd against base: +30.0 ± 6.4 points, more than two standard errors." in text
    assert "brd against further: −1.07 nats." in text
    assert "base on boolq (‘yes’, 98 %)" in text
    assert "nearly always ‘yes’" in text
    assert "The teacher, big, read 2 sentences to train on and 1 sentence held out, from 4 source texts" in text
    assert "One seed (7)" in text
    assert "the same model" not in text
    summary = a_summary()
    summary["arms"]["brd"] = an_arm(0.53, 2.31, 0.94, yes=52)
    weak = " ".join(Page(a_page(summary=summary, recipe={**RECIPE, "student": RECIPE["teacher"]})).text.split())
    assert "brd against base: +2.0 ± 7.1 points, within noise." in weak
    assert "On boolq no arm is above always giving the commonest label" in weak
    assert "Teacher and student are the same model" in weak


def test_readings_that_hold_little_are_named() -> None:
    summary = a_summary()
    behaviors = summary["arms"]["brd"]["reading"]["behaviors"]
    behaviors["ner"]["empty"], behaviors["qra"]["distinct_questions"] = 0.9, 2
    text = " ".join(Page(a_page(summary=summary)).text.split())
    assert "96 % of the entity readings of brd say ‘none’" in text
    assert "brd wrote 24 questions, only 2 of them distinct" in text


def test_one_arm_alone() -> None:
    summary = a_summary()
    summary["arms"] = {"base": summary["arms"]["base"]}
    assert (
        "against" not in Page(a_page(summary=summary, losses={})).text.split("Findings", 2)[2].split("What this run")[0]
    )


def test_many_sentences_are_cut_and_the_page_says_so() -> None:
    readings = [a_reading(n, "ner", "verified", held_out=n >= 3000) for n in range(4000)]
    page = Page(a_page(readings=readings))
    shown = page.data["sentences"]
    assert len(shown) == EMBEDDED_SENTENCES
    assert sum(s["part"] == "held_out" for s in shown) == EMBEDDED_HELD_OUT
    assert "Of 4,000 sentences, the first 2,000 are here (400 of them held out)" in " ".join(page.text.split())


def test_formats() -> None:
    assert figures.number(-1234.5, 1) == "−1,234.5"
    assert figures.percent(None) == figures.percent(float("inf")) == figures.percent(True) == figures.DASH
    assert [figures.duration(s) for s in (1.25, 75, 3720, None)] == ["1.2 s", "1 min 15 s", "1 h 02 min", "–"]


def test_errors() -> None:
    # Agreement of all trials is no certainty.
    assert 0 < (figures.share_error(1.0, 48) or 0) < 0.05
    assert figures.mean_error([3.0, 4.0]) == pytest.approx(2.5)
    assert figures.mean_error([3.0, None]) is None
    assert figures.ticks(2.1, 3.6) == pytest.approx([2.5, 3.0, 3.5])


def test_a_loss_plot_of_many_steps_is_thinned() -> None:
    plot = figures.loss_plot({"brd": [(n, 3.0 - n / 50_000) for n in range(1, 50_001)]})
    assert plot is not None
    points = plot.curves[0].raw.split()
    assert 100 < len(points) <= figures.MAX_POINTS
    places = [float(v) for point in points for v in point.split(",")]
    assert all(0 <= v <= 1000 for v in places)
    assert plot.curves[0].first == pytest.approx(2.95, abs=0.01)
    assert figures.loss_plot({"brd": [(1, 2.0)]}) is not None


BROWSER = next((b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome")) if b), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on this machine")


def open_page(html: str, folder: Path, fragment: str = "", complaints: bool = True) -> str:
    """The DOM after the page's script ran; any word on the console (errors, refused requests) fails the test."""
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    quiet = "--disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    log = "--enable-logging=stderr --v=0 --dump-dom --virtual-time-budget=2000"
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-quic", *quiet.split(), *log.split()]
    command += [f"--user-data-dir={folder / 'profile'}", f"{path.as_uri()}{fragment}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not console, "\n".join(console)
    return done.stdout


def shown_readings(dom: str) -> list[tuple[str | None, str | None]]:
    return [(a["data-behavior"], a["data-verdict"]) for a in Page(dom).named("div") if "data-behavior" in a]


@in_browser
def test_the_browser_shows_every_reading(tmp_path: Path) -> None:
    dom = open_page(a_page(), tmp_path)
    assert shown_readings(dom) == [(r["behavior"], r["verdict"]) for r in READINGS]
    # The offsets count characters of the one-line sentence: the emoji before the name is one.
    assert '\U0001f600 <mark class="type-0" title="person">Ada</mark> reads number 0.' in dom
    assert "6 readings of 3 sentences" in dom


@in_browser
@pytest.mark.parametrize(
    ("fragment", "expected"),
    [
        ("#behavior=ner&verdict=rejected", [("ner", "rejected")]),
        ("#part=held_out", [("ner", "malformed"), ("qra", "verified")]),
        ("#q=raw+NER+2&behavior=nonsense", [("ner", "malformed"), ("qra", "verified")]),
        ("#behavior=qra&verdict=malformed", []),
    ],
)
def test_the_fragment_filters(tmp_path: Path, fragment: str, expected: list[tuple[str, str]]) -> None:
    assert shown_readings(open_page(a_page(), tmp_path, fragment)) == expected


@in_browser
def test_hostile_text_in_a_browser(tmp_path: Path) -> None:
    dom = open_page(hostile_page(), tmp_path)
    page = Page(dom)
    assert len(page.named("script")) == 2
    assert not page.named("img")
    assert "<title>owned" not in dom
    assert len(shown_readings(dom)) == len(READINGS)


@in_browser
def test_many_readings_are_paged(tmp_path: Path) -> None:
    html = a_page(readings=[a_reading(n, "ner", "verified") for n in range(1000)])
    dom = open_page(html, tmp_path, "#page=50")
    assert len(shown_readings(dom)) == 20
    assert "page 50 of 50" in dom
    assert "number 999." in dom


@in_browser
@pytest.mark.parametrize("html", [a_page(), hostile_page()], ids=["plain", "hostile"])
def test_no_sideways_scrolling_on_a_phone(tmp_path: Path, html: str) -> None:
    frame = json.dumps(html).replace("<", "\\u003c")
    measure = (
        "<iframe width=360 height=640></iframe><p></p><script>const f = document.querySelector('iframe');"
        "f.onload = () => { const root = f.contentDocument.documentElement;"
        "document.querySelector('p').textContent = 'width ' + root.scrollWidth; };"
        f"f.srcdoc = {frame}</script>"
    )
    found = re.search(r"width (\d+)</p>", open_page(f"<!DOCTYPE html><meta charset=utf-8>{measure}", tmp_path))
    assert found
    assert int(found[1]) <= 360
