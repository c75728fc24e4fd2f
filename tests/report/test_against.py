"""The report's section on gold annotations and on the distance to the teacher."""

from typing import Any

from pages import a_page, a_summary

from brd.report.against import distances, gold

F1 = {"n": 150, "f1": 0.412, "low": 0.35, "high": 0.47}


def a_full_summary() -> dict[str, Any]:
    summary = a_summary()
    for place, arm in enumerate(summary["arms"].values()):
        answers = {**F1, "f1": 0.3 + place / 10}
        arm["gold"] = {
            "plain": {"entities": None, "answers": answers},
            "prompted": {"entities": F1, "answers": answers},
        }
    summary["teacher"] = {"gold": {"prompted": {"entities": {**F1, "f1": 0.7}, "answers": {**F1, "f1": 0.9}}}}
    summary["divergences"] = {
        arm: {
            f"{task}.{template}": {
                "raw": {"cross_entropy": 1.0 - place / 10 + shift},
                "temperature": {"cross_entropy": 0.6 + place / 10},
                **({"prior": {"cross_entropy": 0.5}} if task == "rte" else {}),
            }
            for task in ("rte", "piqa")
            for template, shift in (("a", 0.1), ("b", -0.1))
        }
        for place, arm in enumerate(summary["arms"])
    }
    return summary


def test_gold_figures_stand_beside_the_teachers() -> None:
    found = gold(a_full_summary())
    assert found is not None
    assert [name for name, _ in found.columns] == ["entities, prompted", "answers, alone", "answers, prompted"]
    rows = dict(found.groups[0][1])
    assert list(rows) == ["base", "further", "brd", "teacher"]
    assert [cell.value for cell in rows["brd"]] == ["41.2", "50.0", "50.0"]
    assert [cell.value for cell in rows["teacher"]] == ["70.0", "–", "90.0"]
    assert gold(a_summary()) is None


def test_distances_are_averaged_over_templates_and_marked_where_nearer_than_further() -> None:
    found = distances(a_full_summary())
    assert found is not None
    assert [name for name, _ in found.columns] == ["rte", "piqa"]
    raw, temperature, prior = (dict(rows) for _, rows in found.groups)
    assert [(cell.value, cell.mark) for cell in raw["brd"]] == [("0.800", "▼"), ("0.800", "▼")]
    assert [cell.mark for cell in raw["base"]] == ["", ""]
    assert [cell.mark for cell in temperature["brd"]] == ["", ""]
    assert [cell.value for cell in prior["brd"]] == ["0.500", "–"]
    assert distances(a_summary()) is None


def test_the_page_has_the_section_only_where_there_is_something() -> None:
    assert 'id="against"' in a_page(summary=a_full_summary())
    assert 'id="against"' not in a_page(summary=a_summary())
