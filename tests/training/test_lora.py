"""LoRA: only the adapters learn, a student is saved whole, and an interrupted training goes on."""

import importlib.util
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from test_students import CLASSES, config, folders, load, logits, tokens  # noqa: F401 (fixtures)

from brd.errors import BrdError
from brd.training import lora, trainer
from brd.training.student import load_model, load_student, student_tokenizer
from brd.training.trainer import train

LORA = "student.lora={rank: 4, alpha: 8}"


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_is_saved_whole_with_its_adapter_beside_it(
    name: str,
    folders: dict[str, Path],  # noqa: F811
    load: Any,  # noqa: F811
    tokens: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from peft import PeftModel

    loaded = load(f"student.model={folders[name]}", LORA, "student.dropout=0")
    tokenizer = student_tokenizer(loaded)
    trained: list[torch.Tensor] = []
    plain = trainer.save

    def save(model: Any, *rest: Any) -> None:
        trained.append(logits(model))
        plain(model, *rest)

    monkeypatch.setattr(trainer, "save", save)
    out = tmp_path / "out"
    done = train(loaded, tokens, 3, tokenizer, out)
    assert done["loss"] == "chunked"
    again = load_model(str(out), torch.float32)
    start = load_student(loaded, tokenizer)
    assert done["parameters"] == start.num_parameters()
    assert list(again.state_dict()) == list(start.state_dict())
    assert torch.allclose(logits(again), trained[0], atol=1e-4)
    assert not torch.allclose(logits(again), logits(start), atol=1e-2)
    # What is no linear layer of the stack is as it was.
    assert torch.equal(again.get_input_embeddings().weight, start.get_input_embeddings().weight)
    adapted = PeftModel.from_pretrained(load_student(loaded, tokenizer), str(out / "adapter"))
    assert torch.allclose(logits(adapted), trained[0], atol=1e-5)
    assert sorted(p.name for p in (out / "adapter").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert str(folders[name].parent) not in (out / "adapter" / "adapter_config.json").read_text()


def test_an_interrupted_training_goes_on_to_the_same_weights(load: Any, tokens: Path, tmp_path: Path) -> None:  # noqa: F811
    loaded = load(LORA, "training.save_steps=100")
    tokenizer = student_tokenizer(loaded)
    whole = train(loaded, tokens, 6, tokenizer, tmp_path / "whole")

    def interrupt(step: int, loss: float) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(loaded, tokens, 6, tokenizer, tmp_path / "broken", interrupt)
    again = train(loaded, tokens, 6, tokenizer, tmp_path / "broken")
    assert again == whole
    ours, theirs = (load_model(str(tmp_path / n), torch.float32).state_dict() for n in ("broken", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_chosen_targets_and_wrong_ones(load: Any, tokens: Path, tmp_path: Path) -> None:  # noqa: F811
    loaded = load("student.lora={targets: [q_proj]}")
    tokenizer = student_tokenizer(loaded)
    train(loaded, tokens, 2, tokenizer, tmp_path / "out")
    ours, start = (
        load_model(str(tmp_path / "out"), torch.float32).state_dict(),
        load_student(loaded, tokenizer).state_dict(),
    )
    changed = {key for key in start if not torch.equal(ours[key], start[key])}
    assert changed == {f"model.layers.{n}.self_attn.q_proj.weight" for n in range(4)}
    with pytest.raises(BrdError, match=r"^student.lora.targets: \['nonsense'\]: .*not found"):
        lora.adapt(load_student(loaded, tokenizer), load("student.lora={targets: [nonsense]}").student.lora)
    for name in ("lm_head", "embed_tokens"):
        with pytest.raises(BrdError, match="can have no adapter here"):
            lora.adapt(load_student(loaded, tokenizer), load(f"student.lora={{targets: [{name}]}}").student.lora)


def test_without_peft_the_error_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BrdError, match=r"^student.lora needs the package peft: pip install 'brd\[lora\]'$"):
        lora.check_installed()


def test_a_new_token_is_not_left_untrained(load: Any) -> None:  # noqa: F811
    with pytest.raises(BrdError, match=r"student: .*lora trains no embedding"):
        load(LORA, "composing.separator_as_token=true", "composing.separator=<sep>")


def test_wrong_values_are_refused(load: Any) -> None:  # noqa: F811
    for key in ("rank: 0", "alpha: 0", "dropout: 1", "targets: []", "ranks: 2"):
        with pytest.raises(BrdError, match=rf"student.lora.{key.split(':')[0]}"):
            load(f"student.lora={{{key}}}")
