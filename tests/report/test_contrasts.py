"""The report's contrasts: shown where there are some, as dashes what was not measured, and always inert."""

import re
from typing import Any

from pages import HOSTILE, Page, a_full_summary, a_page, a_summary, each_value, hostile, without_space, words

from brd.report import contrasts
from brd.report.figures import DASH


def a_row(difference: float, **more: Any) -> dict[str, Any]:
    span = {"low": difference - 0.02, "high": difference + 0.02, "p": 0.03, "standard_error": 0.01}
    return {"a": 0.5, "b": 0.5 + difference, "difference": difference, **span, **more}


def an_endpoint(difference: float) -> dict[str, Any]:
    only = {"low": difference - 0.01, "high": difference + 0.01, "p": 0.0005, "standard_error": 0.005}
    seeds = {"by_seed": [difference - 0.01, difference + 0.01], "same_sign": True, "items_only": only}
    return a_row(difference, tasks=2, **seeds)


def a_contrast() -> dict[str, Any]:
    return {
        "name": "brd - further",
        "a": ["further", "further-2"],
        "b": ["brd", "brd-2"],
        "seeds": {"a": 2, "b": 2},
        "draws": 2000,
        "endpoints": {"accuracy": an_endpoint(0.031), "auc": None, "calibrated_accuracy": an_endpoint(-0.04)},
        "seed_effect": {"accuracy": a_row(0.031, p=None)},
        "tasks": {
            "sst2": {
                "n": 80,
                "templates": 2,
                "accuracy": a_row(0.05, p_holm=0.06),
                "auc": a_row(-0.0123, p_holm=0.5),
            },
            "piqa": {"n": 60, "templates": 1, "accuracy": a_row(0.012, p_holm=0.3), "auc": None},
        },
        "left_out": ["cb"],
        "not_shared": ["boolq.plain"],
    }


def with_contrasts(*found: Any) -> dict[str, Any]:
    return {**a_full_summary(), "contrasts": list(found)}


def test_a_contrast_is_shown() -> None:
    html = a_page(summary=with_contrasts(a_contrast()))
    text = words(html)
    for piece in (
        "brd, brd-2 against further, further-2 (2 against 2 seeds)",
        "accuracy2 tasks50.053.1+3.1+1.1 to +5.10.030+2.1 to +4.1p < 0.001+2.1, +4.1same sign",
        "accuracy after calibration2 tasks50.046.0−4.0",
        "accuracy +3.1 (+1.1 to +5.1), p –",
        "Left out: cb.",
        "Not scored in every arm, so not counted: boolq.plain.",
    ):
        assert piece in text
    assert "area under the curve2 tasks" not in text
    (found,) = contrasts.contrasts(with_contrasts(a_contrast()))
    sst2, piqa = found["tasks"]
    assert (sst2["p_holm"], sst2["auc"].value, sst2["auc_p_holm"]) == ("0.060", "−1.2", "0.500")
    assert (piqa["auc"].value, piqa["auc_p_holm"]) == (DASH, DASH)
    assert found["zero"] < piqa["dot"].x < sst2["dot"].x
    assert 'href="#contrasts"' in html


def test_endpoints_without_some_tasks_follow() -> None:
    less = {"endpoints": {"accuracy": an_endpoint(0.0123)}, "left_out": ["cb", "wsc"]}
    (found,) = contrasts.contrasts(with_contrasts({**a_contrast(), "without": less}))
    assert [(label, len(rows)) for label, rows in found["groups"]] == [("", 2), ("without cb, wsc", 1)]
    text = words(a_page(summary=with_contrasts({**a_contrast(), "without": less})))
    assert "without cb, wsc accuracy2 tasks50.051.2+1.2" in text


def test_without_contrasts_there_is_no_section() -> None:
    for summary in (a_summary(), with_contrasts()):
        html = a_page(summary=summary)
        assert "#contrasts" not in html
        assert "seed by seed" not in html


def test_what_is_said_of_seeds() -> None:
    alone = "One seed (7): how much a second training"
    assert alone in words(a_page())
    assert alone not in words(a_page(summary=with_contrasts(a_contrast())))
    assert "Only the contrasts hold how much a second training" in words(a_page(summary=with_contrasts(a_contrast())))
    assert alone in words(a_page(summary=with_contrasts({**a_contrast(), "seeds": {"a": 1, "b": 1}})))


def test_figures_that_were_not_measured_are_dashes() -> None:
    empty = each_value(a_contrast(), lambda leaf: None if isinstance(leaf, int | float) else leaf)
    text = words(a_page(summary=with_contrasts(empty, {"name": "nothing"}, {})))
    assert "nothing" in text
    assert not re.search(r"\b(None|nan|NaN|Undefined)\b", text.replace("‘None’", ""))


def test_hostile_names_stay_inert() -> None:
    found = hostile(a_contrast())
    found["tasks"] = {HOSTILE: found["tasks"]["sst2"]}
    page = Page(a_page(summary=with_contrasts(found, a_contrast())))
    assert len(page.named("script")) == 2
    assert not page.named("img")
    assert without_space(page.text).count(without_space(HOSTILE)) > 5
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
