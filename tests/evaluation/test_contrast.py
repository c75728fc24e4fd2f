"""Contrasts of arms with several seeds: by hand, against the comparisons of two models, and by simulation."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from brd.errors import BrdError
from brd.evaluation import contrast as module
from brd.evaluation import item_table
from brd.evaluation.compare import compare, divergences
from brd.evaluation.comparison import paired, seed_effect
from brd.evaluation.contrast import contrast, contrast_lines, smallest_detectable
from brd.evaluation.items import Item
from brd.evaluation.scorecard import prior
from brd.evaluation.scoring import ItemScores, candidate_score
from brd.evaluation.statistics import Floats, figures

LABELS = (" no", " yes", " maybe")
BLANK = [[(" no", -1.0, 1), (" yes", -0.2, 1), (" maybe", -2.0, 1)]]


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAWS", 400)


def save(folder: Path, name: str, values: Any, gold: Any, **how: Any) -> None:
    """Scores (items, width) as a file; ``own``: each item has its own candidates; ``order``: of the rows."""
    values = np.asarray(values, dtype=np.float64)
    task, template = name.split(".")
    pairs = []
    for n in how.get("order", range(len(values))):
        labels = [f" {n} {k}" for k in range(values.shape[1])] if how.get("own") else LABELS[: values.shape[1]]
        credits = tuple(float(k == gold[n]) for k in range(values.shape[1]))
        item = Item(f"{task}/{n}", f"{how.get('prompt', template)} {n}", tuple(labels), credits)
        scores = tuple(candidate_score(text, float(v), 1) for text, v in zip(labels, values[n], strict=True))
        pairs.append((item, ItemScores(item.id, credits, scores, 0)))
    blank = [[row[k] for k in range(values.shape[1])] for row in BLANK] if how.get("blank", True) else None
    about = {"task": task, "content_free": blank}
    about |= {"group": "suite"} if task in how.get("grouped", ()) else {}
    item_table.write(folder / f"{name}.parquet", pairs, template, "token_mean", about)


TASKS: dict[str, tuple[int, int, bool]] = {"two": (60, 2, False), "three": (41, 3, False), "own": (50, 3, True)}


def right_answers(task: str) -> Any:
    n, width, _ = TASKS[task]
    return np.random.default_rng(n).integers(width, size=n)


def arm(
    folder: Path, seeds: int, skill: float, draw: int, templates: Sequence[str] = ("plain",), **how: Any
) -> list[Path]:
    """Folders of an arm's seeds on three tasks, from random scores."""
    folders = [folder / str(k) for k in range(seeds)]
    for k, place in enumerate(folders):
        generator = np.random.default_rng([draw, k])
        for task, (n, width, own) in TASKS.items():
            for template in templates:
                values = generator.normal(size=(n, width))
                values[np.arange(n), right_answers(task)] += skill
                save(place, f"{task}.{template}", values, right_answers(task), own=own, **how)
    return folders


def outcomes(folder: Path, name: str) -> Any:
    return item_table.outcomes(folder / f"{name}.parquet", "token_mean")


# --- One seed: what the comparison of two models says


def test_of_one_seed_it_is_the_paired_comparison(tmp_path: Path) -> None:
    (a,), (b,) = arm(tmp_path / "a", 1, 0.4, 1, ("plain", "other")), arm(tmp_path / "b", 1, 0.8, 2, ("plain", "other"))
    found, pairs = contrast([a], [b]), compare(a, b)
    accuracy = found["endpoints"]["accuracy"]
    assert accuracy["difference"] == pytest.approx(pairs["macro"]["difference"])
    assert (accuracy["low"], accuracy["high"]) == pytest.approx(
        (pairs["macro"]["low"], pairs["macro"]["high"]), abs=0.02
    )
    # With one seed there are no seeds to draw.
    assert accuracy["items_only"] == {key: accuracy[key] for key in ("low", "high", "p", "standard_error")}
    assert found["seed_effect"] is None
    areas = {task: [pairs["tasks"][f"{task}.{t}"]["auc_difference"] for t in ("plain", "other")] for task in TASKS}
    assert found["endpoints"]["auc"]["difference"] == pytest.approx(np.mean(list(areas.values())))
    for task, known in areas.items():
        assert found["tasks"][task]["auc"]["difference"] == pytest.approx(np.mean(known))
        assert found["tasks"][task]["templates"] == 2


def test_a_task_s_interval_of_the_auc_is_the_paired_one(tmp_path: Path) -> None:
    (a,), (b,) = arm(tmp_path / "a", 1, 0.4, 1), arm(tmp_path / "b", 1, 0.8, 2)
    found = contrast([a], [b])["tasks"]
    for task in TASKS:
        known = paired(outcomes(a, f"{task}.plain"), outcomes(b, f"{task}.plain"))
        row = found[task]["auc"]
        assert row["difference"] == pytest.approx(known.auc_difference)
        assert (row["low"], row["high"]) == pytest.approx((known.auc_low, known.auc_high), abs=0.04)


def test_calibrated_accuracy_is_the_plain_one_where_candidates_vary(tmp_path: Path) -> None:
    (a,), (b,) = arm(tmp_path / "a", 1, 0.4, 1), arm(tmp_path / "b", 1, 0.8, 2)
    found = contrast([a], [b])["endpoints"]
    row = found["calibrated_accuracy"]
    assert row["difference"] != found["accuracy"]["difference"]
    for side, folder in (("a", a), ("b", b)):
        known = []
        for task, (_, _, own) in TASKS.items():
            path = folder / f"{task}.plain.parquet"
            blank = None if own else prior(path, "token_mean")
            alone = figures(outcomes(folder, f"{task}.plain"), blank)
            known.append(alone.accuracy if own else alone.calibrated_accuracy)
        assert row[side] == pytest.approx(np.mean(known))


def test_a_prior_that_one_folder_lacks_is_used_in_none(tmp_path: Path) -> None:
    a, b = arm(tmp_path / "a", 1, 0.4, 1), arm(tmp_path / "b", 1, 0.8, 2, blank=False)
    found = contrast(a, b)["endpoints"]
    assert found["calibrated_accuracy"]["a"] == found["accuracy"]["a"]


# --- By hand


def right(pattern: str) -> Floats:
    return np.array([[1.0, 0.0] if mark == "1" else [0.0, 1.0] for mark in pattern])


def test_a_tiny_contrast_by_hand(tmp_path: Path) -> None:
    a, b = ([tmp_path / arm / seed for seed in "12"] for arm in "ab")
    # Right answers always stand first: nothing is discriminated.
    patterns = {a[0]: ("1100", "10"), a[1]: ("1000", "00"), b[0]: ("1110", "10"), b[1]: ("1110", "11")}
    for folder, (first, second) in patterns.items():
        save(folder, "x.plain", right(first), [0] * 4)
        save(folder, "y.plain", right(second), [0] * 2)
    found = contrast(a, b)
    row = found["endpoints"]["accuracy"]
    assert row["a"] == pytest.approx((0.5 + 0.125) / 2)
    assert row["b"] == pytest.approx((0.625 + 0.875) / 2)
    assert row["difference"] == pytest.approx(0.4375)
    assert row["by_seed"] == pytest.approx([0.125, 0.75])
    assert (row["same_sign"], row["tasks"]) == (True, 2)
    assert found["endpoints"]["auc"] is None
    assert found["tasks"]["x"]["accuracy"]["difference"] == pytest.approx(0.375)
    assert found["tasks"]["x"]["auc"] is None
    assert found["seeds"] == {"a": 2, "b": 2}
    # Item by item b is at least as good, seeds as they are: zero is met only where the few better items are not drawn.
    assert row["items_only"]["low"] >= 0
    tables = [[[0, 0, 1, 0], [0, 1, 1, 0]], [[0, 0], [1, 1]]]
    for name, value in seed_effect([np.array(table) for table in tables]).as_dict().items():
        assert found["seed_effect"]["accuracy"][name] == pytest.approx(value)


def test_templates_are_averaged_before_tasks(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for folder, marks in ((a, ("1000", "1000", "00")), (b, ("1110", "1100", "10"))):
        save(folder, "x.plain", right(marks[0]), [0] * 4)
        save(folder, "x.other", right(marks[1]), [0] * 4)
        save(folder, "y.plain", right(marks[2]), [0] * 2)
    found = contrast([a], [b])
    assert found["tasks"]["x"]["accuracy"]["difference"] == pytest.approx((0.5 + 0.25) / 2)
    assert found["endpoints"]["accuracy"]["difference"] == pytest.approx((0.375 + 0.5) / 2)


def test_templates_and_arms_share_the_draws(tmp_path: Path) -> None:
    # b's second template undoes its first, item by item: only a common draw keeps the difference at zero.
    a, b = tmp_path / "a", tmp_path / "b"
    marks = "".join("01"[bit] for bit in np.random.default_rng(0).integers(2, size=40))
    turned = marks.translate(str.maketrans("01", "10"))
    save(a, "x.plain", right("1" * 40), [0] * 40)
    save(a, "x.other", right("0" * 40), [0] * 40)
    save(b, "x.plain", right(marks), [0] * 40)
    save(b, "x.other", right(turned), [0] * 40, order=range(39, -1, -1))
    row = contrast([a], [b])["endpoints"]["accuracy"]
    assert (row["low"], row["high"], row["p"]) == (pytest.approx(0), pytest.approx(0), 1.0)
    assert row["same_sign"] is False


def test_the_order_of_the_files_does_not_matter(tmp_path: Path) -> None:
    a = arm(tmp_path / "a", 2, 0.4, 1)
    straight = arm(tmp_path / "b", 2, 0.6, 2)
    turned = [tmp_path / "turned" / str(k) for k in range(2)]
    for folder, copy in zip(straight, turned, strict=True):
        for task, (n, _, own) in TASKS.items():
            found = outcomes(folder, f"{task}.plain")
            order = np.random.default_rng(3).permutation(n)
            save(copy, f"{task}.plain", found.values, right_answers(task), own=own, order=order)
    one, other = contrast(a, straight), contrast(a, turned)
    for endpoint, row in one["endpoints"].items():
        for key in ("difference", "low", "high", "p", "by_seed"):
            assert other["endpoints"][endpoint][key] == pytest.approx(row[key])
    assert other["tasks"]["own"]["auc"] == pytest.approx(one["tasks"]["own"]["auc"])


# --- Several seeds


def test_seeds_are_paired_in_order_or_held_against_the_mean(tmp_path: Path) -> None:
    a, b = arm(tmp_path / "a", 3, 0.4, 1), arm(tmp_path / "b", 3, 0.6, 2)
    single = [contrast([left], [right])["endpoints"] for left, right in zip(a, b, strict=True)]
    found = contrast(a, b)
    for endpoint, row in found["endpoints"].items():
        assert row["by_seed"] == pytest.approx([s[endpoint]["difference"] for s in single])
        assert row["difference"] == pytest.approx(np.mean(row["by_seed"]))
    for endpoint, effect in found["seed_effect"].items():
        assert effect["by_seed"] == pytest.approx(found["endpoints"][endpoint]["by_seed"])
    fewer = contrast(a, b[:2])
    row = fewer["endpoints"]["accuracy"]
    base = found["endpoints"]["accuracy"]["a"]
    assert row["by_seed"] == pytest.approx([s["accuracy"]["b"] - base for s in single[:2]])
    assert fewer["seed_effect"] is None


def test_seeds_that_differ_widen_the_interval(tmp_path: Path) -> None:
    a, b = [tmp_path / "a"], [tmp_path / "b" / seed for seed in "12"]
    for folder, share in ((a[0], 30), (b[0], 10), (b[1], 50)):
        save(folder, "x.plain", right("1" * share + "0" * (60 - share)), [0] * 60)
    row = contrast(a, b)["endpoints"]["accuracy"]
    assert row["difference"] == pytest.approx(0)
    assert row["same_sign"] is False
    # Half of the draws hold one seed twice, a third of the items away from the mean.
    assert row["standard_error"] > 2 * row["items_only"]["standard_error"]


def test_a_planted_effect_is_found(tmp_path: Path) -> None:
    a, b = arm(tmp_path / "a", 2, 0.3, 1), arm(tmp_path / "b", 2, 1.5, 2)
    found = contrast(a, b)
    for row in found["endpoints"].values():
        assert row["low"] > 0
        assert row["p"] == row["items_only"]["p"] == pytest.approx(2 / 401)
        assert row["same_sign"]
    back = contrast(b, a)["endpoints"]
    assert back["auc"]["difference"] == pytest.approx(-found["endpoints"]["auc"]["difference"])
    assert back["auc"]["high"] < 0
    for task in found["tasks"].values():
        assert task["auc"]["p"] <= task["auc"]["p_holm"] <= min(1, 3 * task["auc"]["p"]) + 1e-12


def test_p_is_even_where_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAWS", 200)
    generator = np.random.default_rng(5)
    n, ps = 80, {key: list[float]() for key in ("accuracy", "auc", "with seeds")}
    gold = generator.integers(2, size=n)
    for run in range(40):
        folders = [tmp_path / str(run) / seed for seed in "abcd"]
        # Items that are easy are so for everyone.
        ease = generator.normal(size=n)
        for folder in folders:
            values = generator.normal(size=(n, 2))
            values[np.arange(n), gold] += ease
            save(folder, "x.plain", values, gold)
        found = contrast(folders[:2], folders[2:], seed=run)["endpoints"]
        ps["with seeds"].append(found["accuracy"]["p"])
        for endpoint in ("accuracy", "auc"):
            ps[endpoint].append(found[endpoint]["items_only"]["p"])
    for endpoint in ("accuracy", "auc"):
        assert stats.kstest(ps[endpoint], "uniform").pvalue > 0.001
        assert 0.4 < np.mean(ps[endpoint]) < 0.65
    # Seeds that only add noise to items are counted twice when both are drawn: that errs on the safe side.
    assert np.mean(np.array(ps["with seeds"]) < 0.05) <= 0.05


def test_an_arm_against_itself(tmp_path: Path) -> None:
    a = arm(tmp_path / "a", 1, 0.4, 1, ("plain", "other", "third"))
    found = contrast(a, a)
    for row in found["endpoints"].values():
        assert (row["difference"], row["p"], row["same_sign"]) == (0, 1.0, False)
        assert row["standard_error"] == pytest.approx(0)


# --- What counts


def test_tasks_left_out_change_nothing_else(tmp_path: Path) -> None:
    a, b = arm(tmp_path / "a", 2, 0.4, 1), arm(tmp_path / "b", 2, 0.6, 2)
    whole, less = contrast(a, b), contrast(a, b, leave_out=["three"])
    assert less["left_out"] == ["three"]
    assert less["endpoints"]["accuracy"]["tasks"] == 2
    assert set(less["tasks"]) == {"two", "own"}
    for task in less["tasks"]:
        for key in ("difference", "low", "high", "p"):
            assert less["tasks"][task]["auc"][key] == whole["tasks"][task]["auc"][key]
    (b[1] / "own.plain.parquet").unlink()
    fewer = contrast(a, b)
    assert fewer["not_shared"] == ["own.plain"]
    assert set(fewer["tasks"]) == {"two", "three"}
    assert contrast(a, b, only=["two.plain"])["not_shared"] == []


def test_folders_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    a, b = arm(tmp_path / "a", 1, 0.4, 1), arm(tmp_path / "b", 2, 0.6, 2)
    with pytest.raises(BrdError, match="tasks to leave out: four"):
        contrast(a, b, leave_out=["four"])
    with pytest.raises(BrdError, match="at least one folder"):
        contrast(a, [])
    with pytest.raises(BrdError, match="no task and template is in all of"):
        contrast(a, b, leave_out=TASKS)
    with pytest.raises(BrdError, match="no item scores here"):
        contrast(a, [tmp_path / "nowhere"])
    values, gold = outcomes(b[1], "two.plain").values, right_answers("two")
    save(b[1], "two.plain", values[:50], gold)
    with pytest.raises(BrdError, match=r"two.plain: the two were scored on different items: 60 in .*, 50 in "):
        contrast(a, b)
    save(b[1], "two.plain", values, gold, prompt="asked otherwise")
    with pytest.raises(BrdError, match="60 items of the same name have other prompts"):
        contrast(a, b)
    save(b[1], "two.plain", values, 1 - gold)
    with pytest.raises(BrdError, match="different credits on 60 of 60 items"):
        contrast(a, b)
    assert contrast(a, b, leave_out=["two"])["left_out"] == ["two"]
    save(b[1], "two.plain", values, gold)
    for folder in (*a, *b):
        save(folder, "two.other", values[:50], gold)
    with pytest.raises(BrdError, match=r"has other items than the task's other templates"):
        contrast(a, b)


def test_the_smallest_detectable_difference(tmp_path: Path) -> None:
    a, b = arm(tmp_path / "a", 2, 0.4, 1), arm(tmp_path / "b", 2, 0.6, 2)
    found, known = smallest_detectable(a, b), contrast(a, b)["endpoints"]
    assert found.keys() == known.keys()
    for endpoint, row in found.items():
        assert row["standard_error"] == known[endpoint]["standard_error"]
        assert row["detectable"] == pytest.approx(2.8 * row["standard_error"])
        assert row["items_only"]["standard_error"] == known[endpoint]["items_only"]["standard_error"]
    # Two arms on the same items, each with its own noise: by the variance of their differences.
    gaps = [
        np.mean([outcomes(k, f"{task}.plain").earned for k in b], axis=0)
        - np.mean([outcomes(k, f"{task}.plain").earned for k in a], axis=0)
        for task in TASKS
    ]
    error = sum(gap.var() / len(gap) for gap in gaps) ** 0.5 / len(gaps)
    assert found["accuracy"]["items_only"]["standard_error"] == pytest.approx(error, rel=0.15)


def test_it_is_json_the_same_every_time_and_lines_of_text(tmp_path: Path) -> None:
    a, b = arm(tmp_path / "a", 2, 0.4, 1), arm(tmp_path / "b", 2, 1.0, 2)
    found = contrast(a, b, leave_out=["three"])
    assert json.dumps(found, allow_nan=False) == json.dumps(contrast(a, b, leave_out=["three"]), allow_nan=False)
    assert contrast(a, b, seed=1)["endpoints"]["auc"]["low"] != contrast(a, b)["endpoints"]["auc"]["low"]
    lines = contrast_lines({"name": "brd - further", "a": ["further", "f2"], "b": ["brd", "b2"], **found})
    assert lines[0] == "brd - further: 2 against 2 seeds; a is further, f2; b is brd, b2"
    row = found["endpoints"]["accuracy"]
    line = next(line for line in lines if line.startswith("accuracy (2 tasks)"))
    assert f"{100 * row['difference']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" in line
    assert any(line.startswith("accuracy, mixed model of seeds and items") for line in lines)
    assert any(line.startswith("own ") for line in lines)
    assert lines[-1] == "left out: three"
    assert contrast_lines(contrast(a[:1], b[:1]))[0] == "b - a: 1 against 1 seeds"


def test_draws_without_right_or_wrong_answers_are_left_out(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for folder, shift in ((a, 0.0), (b, 0.5)):
        save(folder, "x.plain", [[1.0, 0.0], [shift, 0.3]], [0, 1])
    found = contrast([a], [b])
    assert json.dumps(found, allow_nan=False)
    assert found["endpoints"]["auc"]["difference"] == 0


def test_the_tasks_of_a_group_count_as_one(tmp_path: Path) -> None:
    grouped = ("two", "own")
    a = arm(tmp_path / "a", 2, 0.2, 1, grouped=grouped)
    b = arm(tmp_path / "b", 2, 0.8, 2, grouped=grouped)
    found = contrast(a, b)
    assert set(found["tasks"]) == {"two", "three", "own"}
    each = {name: row["accuracy"]["difference"] for name, row in found["tasks"].items()}
    wanted = (each["three"] + (each["two"] + each["own"]) / 2) / 2
    endpoint = found["endpoints"]["accuracy"]
    assert endpoint["tasks"] == 2
    assert endpoint["difference"] == pytest.approx(wanted)
    assert found["seed_effect"]["accuracy"]["difference"] == pytest.approx(wanted)
    assert found["seed_effect"]["accuracy"]["tasks"] == 2
    pairs = [compare(left, right)["macro"] for left, right in zip(a, b, strict=True)]
    assert np.mean([pair["difference"] for pair in pairs]) == pytest.approx(wanted)
    assert pairs[0]["tasks"] == 2


def test_a_teacher_that_was_scored_on_fewer_items_is_compared_on_those(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(30, 2))
    gold = generator.integers(2, size=30)
    save(tmp_path / "student", "two.plain", values, gold)
    save(tmp_path / "teacher", "two.plain", values, gold, order=range(0, 30, 3))
    found = divergences(tmp_path / "teacher", tmp_path / "student")["two.plain"]["raw"]
    assert found["n"] == 10
    assert found["kl"] == pytest.approx(0, abs=1e-12)
    save(tmp_path / "other", "two.plain", values, gold, prompt="asked differently")
    with pytest.raises(BrdError, match="other prompts"):
        divergences(tmp_path / "other", tmp_path / "student")


def test_the_items_left_out_may_have_more_candidates(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pairs = {"teacher": [], "student": []}
    for n in range(8):
        # Only the last item has a third candidate, and the teacher was not asked it.
        labels = LABELS[: 3 if n == 7 else 2]
        item = Item(f"two/{n}", f"prompt {n}", labels, tuple(float(k == 0) for k in range(len(labels))))
        scores = tuple(candidate_score(text, float(generator.normal()), 1) for text in labels)
        for who in ("student", "teacher") if n < 7 else ("student",):
            pairs[who].append((item, ItemScores(item.id, item.credits, scores, 0)))
    for who, rows in pairs.items():
        item_table.write(tmp_path / who / "two.plain.parquet", rows, "plain", "token_mean", {"task": "two"})
    found = divergences(tmp_path / "teacher", tmp_path / "student")["two.plain"]
    assert found["raw"]["n"] == 7
    assert found["raw"]["kl"] == pytest.approx(0, abs=1e-12)
    assert "prior" not in found
