import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import brd
from brd.composing.packing import pack

# Most of what a small model costs is its vocabulary.
VOCABULARY = 512


@pytest.fixture(scope="session")
def little_tokenizer() -> Any:
    """A byte-level BPE tokenizer of ``VOCABULARY`` tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    passages = sorted((Path(brd.__file__).parent / "text" / "passages").glob("*.txt"))
    made.train_from_iterator([file.read_text(encoding="utf-8") for file in passages], trainer)
    assert made.get_vocab_size() == VOCABULARY
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<|end|>", eos_token="<|end|>")


@pytest.fixture(scope="session")
def little_model(tmp_path_factory: pytest.TempPathFactory, little_tokenizer: Any) -> Path:
    """A tied Llama of two layers and few tokens, which is quicker by far than the tiny one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = little_tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    folder = tmp_path_factory.mktemp("models") / "little"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def serving() -> Iterator[subprocess.Popen[str]]:
    """The process whose children train (see ``children.py``)."""
    command = [sys.executable, str(Path(__file__).parent / "children.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield server
        assert server.stdin
        server.stdin.close()


@pytest.fixture
def trainings(
    tmp_path: Path, recipe_file: Any, little_model: Path, serving: subprocess.Popen[str]
) -> Callable[..., list[dict[str, Any]]]:
    """Runs trainings in processes of their own, one after another."""

    def run(steps: int, *each: dict[str, Any], **training: Any) -> list[dict[str, Any]]:
        numbers = np.random.default_rng(0).integers(0, VOCABULARY, 10 * 16).tolist()
        pack([numbers], tmp_path / "tokens", row_tokens=16, vocabulary=VOCABULARY)
        settings = {"learning_rate": 1e-2, "rows_per_step": 4, "micro_rows": 4, **training}
        file = recipe_file(student={"model": str(little_model)}, training=settings)
        plan = {"recipe": str(file), "tokens": str(tmp_path / "tokens"), "steps": steps, "trainings": list(each)}
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        assert serving.stdin
        assert serving.stdout
        serving.stdin.write(f"{tmp_path / 'plan.json'}\n")
        serving.stdin.flush()
        assert serving.stdout.readline() == "done\n"
        found: list[dict[str, Any]] = json.loads((tmp_path / "plan.found").read_text())
        return found

    return run


@pytest.fixture
def train_small(tmp_path: Path, recipe_file: Any, little_model: Path) -> Callable[..., dict[str, Any]]:
    """Trains the little model for some steps in this process, with these keys of the recipe and options."""
    from brd import recipe
    from brd.training.student import student_tokenizer
    from brd.training.trainer import train

    numbers = np.random.default_rng(0).integers(0, VOCABULARY, 10 * 16).tolist()
    pack([numbers], tmp_path / "tokens", row_tokens=16, vocabulary=VOCABULARY)

    def run(steps: int, *keys: str, name: str = "student", **options: Any) -> dict[str, Any]:
        file = recipe_file(student={"model": str(little_model)}, training={"learning_rate": 1e-2})
        loaded = recipe.load(str(file), list(keys))
        tokenizer = student_tokenizer(loaded)
        return train(loaded, tmp_path / "tokens", steps, tokenizer, tmp_path / name, **options)

    return run
