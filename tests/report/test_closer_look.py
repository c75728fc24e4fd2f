"""The report's section on the audit of the readings."""

import re

import pytest
from pages import HOSTILE, Page, a_page, an_audit, each_value, hostile, without_space, words

from brd.report.audit import VERDICTS, audit
from brd.report.figures import DASH


def section(html: str) -> str:
    return html[html.index('<section aria-labelledby="audit">') :].split("</section>")[0]


def test_the_page_has_the_section_only_where_something_was_looked_at() -> None:
    html = a_page()
    assert 'href="#audit"' in html
    assert 'id="audit"' in html
    for nothing in (None, {}, {"behaviors": {}}):
        html = a_page(audit=nothing)
        assert 'href="#audit"' not in html
        assert 'id="audit"' not in html


def test_what_was_found_is_told() -> None:
    text = words(section(a_page()))
    for said in (
        "3 of them stand at 4 places. Scripts: Latin 4; the language, en, is the recipe’s, it was not detected.",
        "2 places hold a sentence that stands elsewhere too: ‘Ada reads.’ (2).",
        "7 readings in the store are of another teacher, prompt or text and are not counted.",
        "all 3 66.7 33.3 0.0 0.0 33.3",
        "not a name: 1, 33.3 % of those asked Rain fell. rain (event)",
        "Type of entity, of verified readings, in %: about 3 different ones; about 2 of 4 stand with several sentences",
        "person 4 100.0 about 3 ‘Ada Berg’ (2)",
        "words of the answer 4 3.5 3 5 9",
        "Of 4 readings that hold something, 2 are word for word as that of another sentence: ‘Ada Berg’ (2).",
        "entities, gold.iob2 9 50.0 25.0–75.0 62.5 – – –",
        "answers, squad.json 8 50.0 25.0–75.0 – – – 37.5",
        "Taken with other weights or in another dtype than the readings.",
    ):
        # Cells follow each other without a space.
        assert without_space(said) in without_space(text), said
    # Lengths of which no sentence was asked have no row.
    assert "40 or more" not in text
    found = audit(an_audit())
    assert found is not None
    legend = {piece.label: piece.count for piece in found["behaviors"][0]["legend"]}
    assert legend == dict(zip(VERDICTS, (0, 1, 0, 1, 1), strict=True))


def test_hostile_text_in_every_place_of_the_audit_stays_inert() -> None:
    found = hostile(an_audit())
    found["behaviors"] = {HOSTILE: found["behaviors"]["ner"]}
    page = Page(a_page(audit=found))
    assert len(page.named("script")) == 2
    assert not page.named("img")
    inside = Page(section(a_page(audit=found)))
    assert without_space(inside.text).count(without_space(HOSTILE)) >= 15
    assert not [attributes for _, attributes in inside.elements if {"style", "src"} & attributes.keys()]


@pytest.mark.parametrize("value", [None, float("nan")])
def test_figures_that_are_not_there_are_dashes(value: float | None) -> None:
    text = words(section(a_page(audit=each_value(an_audit(), lambda leaf: leaf if isinstance(leaf, str) else value))))
    assert DASH in text
    assert not re.search(r"\b(None|nan|NaN|Undefined)\b", text)
    assert 'id="audit"' in a_page(audit={"behaviors": {"ner": {"asked": 1}}})
