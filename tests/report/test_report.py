"""report.html: whatever the text and the figures, it stays inert, shows them, and works in a real browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pages import (
    HOSTILE,
    READINGS,
    RECIPE,
    Page,
    a_full_summary,
    a_page,
    a_reading,
    a_summary,
    an_arm,
    each_value,
    hostile_page,
    without_space,
)

from brd.report import figures
from brd.report.browser import EMBEDDED_HELD_OUT, EMBEDDED_SENTENCES
from brd.report.build import render


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


@pytest.mark.parametrize("summary", [a_summary(), a_full_summary()], ids=["old", "full"])
def test_nothing_is_fetched(summary: dict[str, Any]) -> None:
    html = a_page(summary=summary)
    page = Page(html)
    for tag, attributes in page.elements:
        # The policy allows the one style sheet only, so that a style attribute would do nothing.
        assert not {"src", "srcset", "style"} & attributes.keys(), (tag, attributes)
        for name in ("href", "action", "data", "poster"):
            link = attributes.get(name) or ""
            assert link.startswith("#") or not link or (tag == "a" and link.startswith("https://arxiv.org/")), link
    assert not page.named("link")
    assert not re.search(r"url\(|@import", html)
    policy = next(m["content"] for m in page.named("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy


@pytest.mark.parametrize("summary", [a_summary(), a_full_summary()], ids=["old", "full"])
def test_ids_are_unique_and_every_anchor_has_its_target(summary: dict[str, Any]) -> None:
    page = Page(a_page(summary=summary))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    anchors = [str(a["href"])[1:] for a in page.named("a") if str(a["href"]).startswith("#")]
    assert {a for a in anchors if "=" not in a} <= set(ids)


@pytest.mark.parametrize("whole", [a_summary(), a_full_summary()], ids=["old", "full"])
def test_figures_that_were_not_measured_are_dashes(whole: dict[str, Any]) -> None:
    summary = each_value(whole, lambda leaf: None if isinstance(leaf, int | float) else leaf)
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


def test_many_constant_arms_are_counted_and_what_was_not_measured_is_not_told() -> None:
    summary = a_summary()
    names = [f"task{n}" for n in range(9)]
    for arm in summary["arms"].values():
        arm["tasks"] |= dict.fromkeys(names, summary["arms"]["base"]["tasks"]["boolq"])
    summary["arms"]["base"]["reading_prompted"] = {"well_formed": 0.4}
    text = " ".join(Page(a_page(summary=summary)).text.split())
    assert "the same answer: base on 10, further on 9 and brd on 9 of 10 (tasks and templates" in text
    assert "base on task3" not in text
    assert "few-shot prompt in front: base 40 %." in text


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
@pytest.mark.parametrize(
    "html", [a_page(), a_page(summary=a_full_summary()), hostile_page()], ids=["old", "full", "hostile"]
)
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
