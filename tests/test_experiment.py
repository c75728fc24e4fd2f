"""Experiments: arms with seeds, variants, a healed start, the teacher scored, and halves, through the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from brd import recipe
from brd.errors import BrdError
from brd.experiment import ARMS, arm, seeds


def test_arms_have_seeds_and_variants(recipe_file: Any) -> None:
    path = recipe_file(
        variants={"brd_slow": {"arm": "brd", "set": {"training.learning_rate": 1e-5}}},
        arms=["base", "brd", "brd@1", "brd_slow@2", "no_ner"],
    )
    loaded = recipe.load(str(path))
    assert seeds(loaded) == {
        "base": ["base"],
        "brd": ["brd", "brd@1"],
        "brd_slow": ["brd_slow@2"],
        "no_ner": ["no_ner"],
    }
    assert arm(loaded, "brd@1").overrides == {"seed": 1}
    assert arm(loaded, "brd_slow@2").overrides == {"training.learning_rate": 1e-5, "seed": 2}
    assert arm(loaded, "no_ner").overrides == {"composing.mix.ner": 0.0}
    mixed = recipe.changed(
        loaded, {"arms": ["brd"], "variants": {"x": {"arm": "no_ner", "set": {"composing.mix": {"original": 0.5}}}}}
    )
    assert recipe.changed(mixed, arm(mixed, "x").overrides).composing.mix == {"original": 0.5, "ner": 0.0}
    assert "training.learning_rate 1e-05" in arm(loaded, "brd_slow@2").about


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"arms": ["base", "brdd@1"]}, "unknown arm 'brdd'; did you mean 'brd'"),
        ({"arms": ["brd@1", "brd@1"]}, "an arm is named twice"),
        ({"evaluation": {"reading_arms": ["brb"]}}, "evaluation.reading_arms: unknown arm 'brb'; did you mean 'brd'"),
        ({"variants": {"brd": {"arm": "brd"}}}, "'brd' is a known arm"),
        ({"variants": {"healed": {"arm": "brd"}}}, "'healed' names something else"),
        (
            {"variants": {"x": {"arm": "brd", "set": {"student.layers": [0]}}}},
            "student.layers is the same for all arms",
        ),
        ({"variants": {"x": {"arm": "brd", "set": {"composing.row_tokens": 32}}}}, "composing.row_tokens is the same"),
        ({"variants": {"x": {"arm": "brd", "set": {"training.lr": 1}}}}, "variants.x: training.lr"),
        ({"variants": {"x": {"arm": "furter"}}}, "unknown arm 'furter'"),
    ],
)
def test_arms_that_cannot_be(recipe_file: Any, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(BrdError) as caught:
        recipe.load(str(recipe_file(**sections)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_may_name_an_environment_variable(recipe_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipe_file(evaluation={"gold_entities": "$SOME_DATA/ner.txt"})
    monkeypatch.setenv("SOME_DATA", "/somewhere")
    assert recipe.load(str(path)).evaluation.gold_entities == "/somewhere/ner.txt"
    monkeypatch.delenv("SOME_DATA")
    with pytest.raises(BrdError, match="environment variable SOME_DATA is not set"):
        recipe.load(str(path))


@pytest.fixture
def gold(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "gold.iob").write_text(
        "".join(
            f"Mira NNP B-NP I-PER\nsaw NN B-VP O\nOslo{n} NNP B-NP I-LOC\nat CC O O\nlast JJ O O\n\n" for n in range(3)
        ),
        encoding="utf-8",
    )
    context = "Mira sailed to Oslo in June. It rained."
    question = {"id": "1", "question": "Where to?", "answers": [{"text": "Oslo", "answer_start": 15}]}
    tree = {"data": [{"title": "t", "paragraphs": [{"context": context, "qas": [question]}]}]}
    (tmp_path / "gold.json").write_text(json.dumps(tree), encoding="utf-8")
    return {"gold_entities": str(tmp_path / "gold.iob"), "gold_answers": str(tmp_path / "gold.json")}


def test_an_experiment_with_seeds_healing_halves_and_the_teacher(
    brd: Callable[..., Any], recipe_file: Any, gold: dict[str, str], tmp_path: Path
) -> None:
    path = recipe_file(
        text={"healing": 0.3, "order": "shuffled"},
        healing={"most_tokens": 1024, "check_tokens": 256, "cooling_tokens": 256, "enough": 0.5},
        evaluation={"tasks": ["sst2", "cb"], "half": "a", "limit": 6, "teacher": 3, "leave_out": ["cb"], **gold},
        arms=["base", "further", "further@1", "brd", "brd@1", "further_same", "brd_shuffled"],
    )
    done = brd("run", path, "--out", "out")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["arms"]) == ["base", "further", "further@1", "brd", "brd@1", "further_same", "brd_shuffled"]
    assert len({n for arm, n in summary["trained_tokens"].items() if arm != "base"}) == 1
    healing = summary["healing"]
    assert healing["stands_still"]
    assert healing["curve"][0][0] == 0
    assert healing["trained_tokens"] == healing["curve"][-1][0]
    names = [row["name"] for row in summary["contrasts"]]
    assert names == ["brd - base", "brd - further", "brd - further_same", "brd - brd_shuffled"]
    row = summary["contrasts"][1]
    assert (row["a"], row["b"]) == (["further", "further@1"], ["brd", "brd@1"])
    assert row["without"]["left_out"] == ["cb"]
    assert summary["teacher"]["tasks"]["sst2"]["n"] == 3
    assert summary["arms"]["brd"]["tasks"]["sst2"]["n"] == 6
    assert set(summary["divergences"]) == set(summary["arms"])
    for figures in (summary["arms"]["brd"]["gold"], summary["teacher"]["gold"]):
        assert figures["prompted"]["answers"]["n"] == 1
        assert figures["prompted"]["entities"]["n"] == 3
    # All arms start from the healed student, which base is.
    weights = [(out / "students" / name / "model.safetensors").read_bytes() for name in ("healed", "base", "brd")]
    assert weights[0] == weights[1] != weights[2]

    # The other half: nothing is read or trained again, and no item is in both; reading is tested where it is asked for.
    some = "evaluation.reading_arms=[base, brd]"
    again = brd("run", path, "--out", "out", "--set", "evaluation.half=b", "--set", some)
    assert again.returncode == 0, again.stderr
    started = {line.split(":")[0] for line in again.stderr.splitlines() if line.endswith(": started")}
    assert started == {*(f"evaluate_b.{arm}" for arm in [*summary["arms"], "teacher"]), "report"}
    other = json.loads((out / "summary.json").read_text())
    assert other["half"] == "b"
    assert [arm for arm, figures in other["arms"].items() if "reading" in figures] == ["base", "brd"]

    import pyarrow.parquet as pq

    ids = [
        set(pq.read_table(next((out / f"evaluation_{half}" / "brd").glob("sst2.*.parquet")))["item"].to_pylist())
        for half in "ab"
    ]
    assert not ids[0] & ids[1]


def test_readings_that_others_paid_for_are_not_asked_again(
    brd: Callable[..., Any], recipe_file: Any, tmp_path: Path
) -> None:
    from brd.reading.reader import Readings
    from brd.reading.store import export

    path = recipe_file()
    assert brd("read", path, "--out", "out").returncode == 0
    readings = Readings(recipe.load(str(path)), tmp_path / "out" / "readings")
    found = [reading for part in (False, True) for *_, reading in readings.all(part)]
    assert (
        export([(reading, "en") for reading in found[:10]], tmp_path / "known.parquet", "our own sentences, CC0") == 10
    )
    again = brd("read", path, "--out", "again", "--set", "reading.known=[known.parquet]")
    assert again.returncode == 0, again.stderr
    counts = json.loads((tmp_path / "again" / "steps" / "read.json").read_text())["result"]["counts"]
    assert counts["ner_asked"] + counts["qra_asked"] == len(found) - 10
    both = Readings(recipe.load(str(path)), tmp_path / "again" / "readings")
    assert [reading for part in (False, True) for *_, reading in both.all(part)] == found
    missing = brd("read", path, "--out", "third", "--set", "reading.known=[nowhere.parquet]")
    assert missing.returncode == 2
    assert "reading.known" in missing.stderr
    assert "no such file" in missing.stderr


def test_the_recipe_of_the_experiment_at_toy_size(
    brd: Callable[..., Any], gold: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    small = {
        "text.source": "passages",
        "text.layout": "blank_line",
        "text.held_out": 0.3,
        "reading.sentences": 8,
        "reading.held_out_sentences": 4,
        "teacher.model": tiny_model,
        "teacher.max_new_tokens": 12,
        "composing.row_tokens": 64,
        "student.model": tiny_model,
        "healing": "{most_tokens: 512, check_tokens: 256, cooling_tokens: 256}",
        "training.rows_per_step": 2,
        "training.micro_rows": 1,
        "evaluation.tasks": "[cb]",
        "evaluation.limit": 3,
        "evaluation.teacher": 2,
        "evaluation.reading_sentences": 2,
        **{f"evaluation.{key}": path for key, path in gold.items()},
    }
    changes = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    done = brd("run", "mini", "--out", "out", *changes)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["arms"]) == ["base", "further", "brd"]
    assert summary["half"] == "a"
    teacher = json.loads((tmp_path / "out" / "readings" / "teacher.json").read_text())
    assert (teacher["dtype"], teacher["chat_template"]) == ("int8", "turns")
    assert 'id="against"' in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_the_recipe_of_the_papers_comparisons_has_all_of_them() -> None:
    told = set(recipe.load("arms").arms)
    # All arms but those that take something away from brd.
    assert set(ARMS) - told == {"further_same", "no_ner", "no_qra", "brd_unverified", "brd_shuffled"}
    assert {"kd+brd", "minillm+brd", "brd+task_distillation", "brd+supervised"} <= told
