"""What training cannot take: one line and exit code 2, before anything is paid for, and what mends it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from brd import recipe as recipes
from brd.console import Console
from brd.pipeline import Pipeline
from brd.run import RunFolder

Brd = Callable[..., Any]


def failed(done: Any, *words: str) -> None:
    lines = [line for line in done.stderr.splitlines() if line.startswith("brd: ")]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0], lines[0]


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory, little_model: Path, tiny_model: Path) -> Path:
    """A run up to its token files, and its recipe."""
    folder = tmp_path_factory.mktemp("composed")
    tree = {
        "name": "small",
        "text": {"source": "passages", "layout": "blank_line", "held_out": 0.3},
        "reading": {"sentences": 4, "held_out_sentences": 1, "known": []},
        "teacher": {"model": str(tiny_model), "max_new_tokens": 4, "dtype": "float32"},
        "composing": {"row_tokens": 32},
        "student": {"model": str(little_model)},
        "training": {"rows_per_step": 2, "micro_rows": 2, "dtype": "float32", "learning_rate": 1e-2},
        "evaluation": {"tasks": ["sst2"]},
        "arms": ["brd"],
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    loaded = recipes.load(str(folder / "small.yaml"))
    Pipeline(loaded, RunFolder(folder / "run", loaded), Console()).up_to("compose")
    return folder


@pytest.fixture
def run(composed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(composed / "run", tmp_path / "run"))


def test_token_files_that_are_damaged_are_named_and_composed_again(composed: Path, run: Path, brd_here: Brd) -> None:
    recipe, folder = composed / "small.yaml", run / "composed" / "brd"
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    damages: dict[str, Callable[[bytes], bytes]] = {
        "tokens.bin": lambda content: bytes(len(content)),
        "documents.bin": lambda content: content[:-4],
        "meta.json": lambda content: b"\xff" * len(content),
    }
    for name, damage in damages.items():
        (folder / name).write_bytes(damage(whole[name]))
        failed(brd_here("train", recipe, "--out", run), "composed/brd", "run `brd compose` again")
        again = brd_here("compose", recipe, "--out", run)
        assert again.returncode == 0, (name, again.stderr)
        assert "compose.brd: to be done again (" in again.stderr
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == whole
    assert "compose.brd: up to date, skipped" in brd_here("compose", recipe, "--out", run).stderr


def test_what_cannot_be_trained_is_said_before_anything_is_read(
    composed: Path,
    tmp_path: Path,
    brd_here: Brd,
    little_tokenizer: Any,
    little_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from importlib import util

    from transformers import LlamaConfig, LlamaForCausalLM

    def model(name: str, **keys: int) -> str:
        config = LlamaConfig.from_pretrained(little_model)
        for key, value in keys.items():
            setattr(config, key, value)
        LlamaForCausalLM(config).save_pretrained(tmp_path / name)
        little_tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    torch.manual_seed(0)
    plain = util.find_spec
    for module in ("brd.training.checks.find_spec", "importlib.util.find_spec"):
        monkeypatch.setattr(module, lambda name, *rest: None if name in ("wandb", "trl") else plain(name, *rest))
    short, few = model("short", max_position_embeddings=16), model("few", vocab_size=100)
    gkd = ["arms=[gkd]", "distillation.prompt_tokens=8", "distillation.new_tokens=8"]
    wrong: list[tuple[list[str], list[str]]] = [
        (["student.model=./gone"], ["gone", "no such model folder"]),
        ([f"student.model={short}"], ["composing.row_tokens: 32", "student's window of 16"]),
        ([f"student.model={few}"], ["a tokenizer of 512 tokens and an embedding of 100"]),
        (["training.report_to=wandb"], ["training.report_to: wandb is not installed"]),
        (["arms=[kd]", f"distillation.teacher_model={short}"], ["row_tokens: 32", "teacher's", "window of 16"]),
        (gkd, ["gkd", "pip install 'brd[distill]'"]),
    ]
    for number, (keys, words) in enumerate(wrong):
        sets = [part for key in keys for part in ("--set", key)]
        failed(brd_here("run", composed / "small.yaml", "--out", "out", *sets), *words)
        assert not (tmp_path / "out" / "readings").exists()
        if number < 4:
            failed(brd_here("validate", composed / "small.yaml", *sets), *words)


def test_a_recipe_that_was_being_written_locks_nobody_out(run: Path, composed: Path, monkeypatch: Any) -> None:
    loaded = recipes.load(str(composed / "small.yaml"))
    before = (run / "recipe.yaml").read_bytes()

    def killed(*_: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(SystemExit):
            RunFolder(run, recipes.changed(loaded, {"seed": 7}))
    assert (run / "recipe.yaml").read_bytes() == before
    RunFolder(run, loaded)


def test_lessons_of_nothing_are_refused(composed: Path, run: Path, brd_here: Brd) -> None:
    nothing = "composing.mix={original: 0, ner: 0, qra: 0}"
    empty = brd_here("compose", composed / "small.yaml", "--out", run, "--set", nothing)
    failed(empty, "composed/brd: the lessons are empty")
