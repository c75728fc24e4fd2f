"""Shared fixtures: tiny random models with a real tokenizer, and a recipe that runs the whole road in seconds."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    from brd.embedded import smollm2_folder

    return AutoTokenizer.from_pretrained(smollm2_folder())


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A Llama of four small layers with random weights, as a Hugging Face folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """Writes a small recipe (tiny random teacher and student); keyword arguments replace keys of its sections."""

    def write(**sections: Any) -> Path:
        tree: dict[str, Any] = {
            "name": "small",
            "text": {"source": "passages", "layout": "blank_line", "held_out": 0.3},
            "reading": {"sentences": 12, "held_out_sentences": 6, "known": []},
            "teacher": {"model": str(tiny_model), "max_new_tokens": 12, "dtype": "float32"},
            "composing": {"row_tokens": 64},
            "student": {"model": str(tiny_model)},
            "training": {"rows_per_step": 2, "micro_rows": 2, "save_steps": 2, "dtype": "float32"},
            "evaluation": {"tasks": ["sst2", "piqa"], "limit": 4, "reading_sentences": 4, "dtype": "float32"},
        }
        for key, value in sections.items():
            tree[key] = {**tree[key], **value} if isinstance(tree.get(key), dict) and isinstance(value, dict) else value
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    return write


@pytest.fixture
def brd(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line in a folder of its own, as a user would."""

    def call(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "brd", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, **options)

    return call


@pytest.fixture
def brd_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same in this process, which has torch loaded already: the program's own entry, its output and exit code."""
    from brd.cli import entry

    def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(tmp_path)
        command = ["brd", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        capsys.readouterr()
        code = 0
        try:
            entry()
        except SystemExit as leave:
            code = int(leave.code or 0)
        written = capsys.readouterr()
        return subprocess.CompletedProcess(command, code, written.out, written.err)

    return call
