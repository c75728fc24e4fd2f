"""The arms that learn from a teacher's distributions, through the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from brd import recipe
from brd.errors import BrdError
from brd.experiment import arm, chain, split_last
from brd.fingerprints import Fingerprints

SHORT = {
    "composing": {"row_tokens": 32},
    "training": {"epochs": 1.0, "learning_rate": 1e-2},
    "distillation": {"prompt_tokens": 8, "new_tokens": 6},
    "evaluation": {"tasks": ["sst2"], "limit": 2, "reading_arms": [], "reading_sentences": 1},
    "reading": {"sentences": 4, "held_out_sentences": 1},
}


@pytest.fixture
def teacher(tmp_path: Path, tokenizer: Any, tiny_model: Path) -> Path:
    """Another tiny model with the student's tokenizer, and more rows of embedding than it has tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    config = LlamaConfig.from_pretrained(tiny_model)
    config.vocab_size, config.num_hidden_layers = len(tokenizer) + 64, 2
    LlamaForCausalLM(config).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def manifest(tmp_path: Path, step: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "out" / "steps" / f"{step}.json").read_text())
    return found["result"]


def test_the_arms_run_and_share_signals_and_lessons(
    recipe_file: Any, brd_here: Any, tmp_path: Path, teacher: Path
) -> None:
    pytest.importorskip("trl")
    arms = ["kd", "kd_soft", "kd+brd", "gkd", "minillm"]
    sections = {**SHORT, "arms": arms, "variants": {"kd_soft": {"arm": "kd", "set": {"distillation.weight": 1.0}}}}
    sections["distillation"] = {**SHORT["distillation"], "teacher_model": str(teacher)}
    path = recipe_file(**sections)
    done = brd_here("run", path, "--out", "out")
    assert done.returncode == 0, done.stderr
    found = {name: manifest(tmp_path, f"train.{name}") for name in arms}
    assert [found[name]["loss"] for name in arms] == ["kd", "kd", "chunked", "gkd", "minillm"]
    assert len({result["steps"] for result in found.values()}) == 1
    assert found["kd"]["steps"] >= 3
    cards = {name: (tmp_path / "out" / "students" / name / "README.md").read_text() for name in arms}
    for name, words in {"kd": "Knowledge distillation", "kd+brd": "Plain causal LM loss", "gkd": "GKD"}.items():
        assert f". {words}" in cards[name].split("## How it was made")[1]
    # The two arms on the same text asked the teacher once, and none of the others' lessons were composed twice.
    assert len([*(tmp_path / "out" / "signals").iterdir()]) == 1
    composed = {folder.name for folder in (tmp_path / "out" / "composed").iterdir() if folder.is_dir()}
    assert composed == {"brd", *arms} - {"kd+brd"}
    more = brd_here("train", path, "--out", "out", "--set", "distillation.beta=0.1")
    assert "train.gkd: started" in more.stderr
    assert "train.kd+brd: up to date, skipped" in more.stderr
    assert "train.minillm: up to date, skipped" in more.stderr


def test_a_chain_is_its_last_arm_from_the_student_of_the_others(recipe_file: Any) -> None:
    loaded = recipe.load(str(recipe_file(arms=["kd+brd@1"])), ["composing.row_tokens=128"])
    assert split_last("kd+brd@1") == ("kd@1", "brd@1")
    assert chain("kd+no_ner+brd@2") == ["kd@2", "kd+no_ner@2", "kd+no_ner+brd@2"]
    found, alone = arm(loaded, "kd+brd@1"), arm(loaded, "brd@1")
    assert (found.data, found.overrides, found.after) == (alone.data, alone.overrides, "kd@1")
    prints = Fingerprints(loaded)
    assert prints.compose("kd+brd@1") == prints.compose("brd@1")
    assert prints.train("kd+brd@1") != prints.train("brd@1")
    changed = recipe.changed(loaded, {"distillation.weight": 0.9})
    assert Fingerprints(changed).train("kd+brd@1") != prints.train("kd+brd@1")
    assert Fingerprints(changed).train("brd@1") == prints.train("brd@1")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"arms": ["kd+bdr"]}, "unknown arm 'bdr'; did you mean 'brd'"),
        ({"arms": ["base+brd"]}, "base+brd: base trains nothing"),
        ({"arms": ["kd+brd", "kd+brd"]}, "an arm is named twice"),
        ({"arms": ["gkd"]}, "64 and 64 are more than a row has (composing.row_tokens, 64); the arm gkd"),
        (
            {"arms": ["brd", "kd", "gkd"], "training": {"attention": "document"}},
            "training.attention: the arm gkd goes on with the beginning of a row, whatever documents are in it",
        ),
        ({"distillation": {"weight": 2}}, "distillation.weight"),
        ({"distillation": {"topk": 2}}, "did you mean 'top'"),
    ],
)
def test_recipes_of_distillation_that_cannot_be(recipe_file: Any, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(BrdError) as caught:
        recipe.load(str(recipe_file(**sections)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_tokenizer_is_refused_before_anything_is_read(
    recipe_file: Any, brd_here: Any, tmp_path: Path, teacher: Path, tokenizer: Any
) -> None:
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(teacher)
    other.add_tokens(["brandnewword"])
    other.save_pretrained(teacher)
    path = recipe_file(**SHORT, arms=["base", "kd"])
    refused = brd_here("run", path, "--out", "out", "--set", f"distillation.teacher_model={teacher}")
    assert refused.returncode == 2
    assert "has another tokenizer than the student (1 tokens have another id or none, such as 'brandnewword')" in (
        refused.stderr
    )
    assert not (tmp_path / "out" / "readings").exists()


def test_without_trl_gkd_says_what_to_install(
    recipe_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    from brd.training.distillation import method

    monkeypatch.setattr(method.importlib.util, "find_spec", lambda name: None)
    loaded = recipe.load(str(recipe_file(**SHORT, arms=["base"])), ["training.objective=gkd"])
    with pytest.raises(BrdError, match=r"^gkd: its divergence is TRL's, which is not installed; pip install 'brd\["):
        method.method_of(loaded, tmp_path, tokenizer, tmp_path)
    compiled = recipe.changed(loaded, {"training.compile": True, "training.objective": "minillm"})
    with pytest.raises(BrdError, match=r"^training\.compile: not with minillm"):
        method.method_of(compiled, tmp_path, tokenizer, tmp_path)
