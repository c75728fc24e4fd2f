import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from brd import recipe
from brd.composing.packing import pack
from brd.errors import BrdError
from brd.training.student import keep_layers, load_model, load_student, load_tokenizer, student_tokenizer
from brd.training.trainer import row_order, train


@pytest.fixture
def small(recipe_file: Any) -> Any:
    def load(*overrides: str) -> recipe.Recipe:
        return recipe.load(str(recipe_file()), list(overrides))

    return load


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    numbers = np.random.default_rng(0).integers(0, 49_000, 10 * 64).tolist()
    pack([numbers], tmp_path / "tokens", row_tokens=64, vocabulary=49_152)
    return tmp_path / "tokens"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(str(folder), torch.float32).state_dict())


def test_every_row_comes_once_a_pass_in_an_order_of_the_seed() -> None:
    order = row_order(10, 25, 0)
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert len(order) == 25
    assert order == row_order(10, 25, 0)
    assert order != row_order(10, 25, 1)


def test_training_is_reproducible_and_lowers_the_loss(small: Any, tokens: Path, tmp_path: Path) -> None:
    loaded = small("training.learning_rate=1e-2", "training.schedule=constant", "training.warmup=0")
    tokenizer = student_tokenizer(loaded)
    first = train(loaded, tokens, 12, tokenizer, tmp_path / "a")
    second = train(loaded, tokens, 12, tokenizer, tmp_path / "b")
    assert first["losses"] == second["losses"]
    assert first["losses"][-1][1] < first["losses"][0][1] - 1
    assert first["trained_tokens"] == 12 * 2 * 64
    assert first["passes"] == pytest.approx(12 * 2 / 10)
    assert not (tmp_path / "a.checkpoints").exists()


def test_an_interrupted_training_goes_on_to_the_same_weights(small: Any, tokens: Path, tmp_path: Path) -> None:
    import os
    import signal

    loaded = small("training.learning_rate=1e-2", "training.save_steps=100")
    tokenizer = student_tokenizer(loaded)
    whole = train(loaded, tokens, 8, tokenizer, tmp_path / "whole")

    def interrupt(step: int, loss: float) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(loaded, tokens, 8, tokenizer, tmp_path / "broken", interrupt)
    assert not (tmp_path / "broken").exists()
    steps: list[int] = []
    again = train(loaded, tokens, 8, tokenizer, tmp_path / "broken", lambda step, loss: steps.append(step))
    assert 3 <= steps[0] - 1 <= 4
    assert again["losses"] == whole["losses"]
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "broken")[name]), name


def test_a_loss_that_is_no_number_stops_with_advice(small: Any, tokens: Path, tmp_path: Path, tiny_model: Path) -> None:
    broken = tmp_path / "nan"
    model = load_model(str(tiny_model), torch.float32)
    model.model.norm.weight.data.fill_(float("nan"))
    model.save_pretrained(broken)
    load_tokenizer(str(tiny_model)).save_pretrained(broken)
    loaded = small(f"student.model={broken}")
    with pytest.raises(BrdError, match=r"the loss is nan at step 1; lower training.learning_rate"):
        train(loaded, tokens, 4, student_tokenizer(loaded), tmp_path / "out")


def test_rows_longer_than_the_students_window_are_refused(small: Any, tmp_path: Path) -> None:
    pack([[1, 2, 3]], tmp_path / "long", row_tokens=4096, vocabulary=49_152)
    loaded = small()
    with pytest.raises(BrdError, match=r"composing.row_tokens: 4096 .* 2048"):
        train(loaded, tmp_path / "long", 1, student_tokenizer(loaded), tmp_path / "out")


def test_cut_students_are_the_kept_layers(small: Any, tmp_path: Path, tiny_model: Path) -> None:
    loaded = small("student.layers=[3, 0]")
    cut = load_student(loaded, student_tokenizer(loaded)).eval()
    assert cut.config.num_hidden_layers == 2
    cut.save_pretrained(tmp_path / "cut")
    ids = torch.arange(20)[None]
    whole = load_model(str(tiny_model), torch.float32).eval()
    whole.model.layers = torch.nn.ModuleList([whole.model.layers[0], whole.model.layers[3]])
    expected = whole(input_ids=ids, use_cache=False).logits
    again = load_model(str(tmp_path / "cut"), torch.float32).eval()
    assert torch.equal(cut(input_ids=ids).logits, expected)
    assert torch.equal(again(input_ids=ids).logits, expected)
    # With a cache the layers must be numbered anew.
    step = again(input_ids=ids[:, :-1], use_cache=True)
    last = again(input_ids=ids[:, -1:], past_key_values=step.past_key_values).logits
    assert torch.allclose(last[0, -1], expected[0, -1], atol=1e-5)


@pytest.mark.parametrize("layers", [[], [0, 4], [1, 1]])
def test_wrong_layers_are_refused(tiny_model: Path, layers: list[int]) -> None:
    with pytest.raises(BrdError, match=r"student.layers: should be different numbers from 0 to 3"):
        keep_layers(load_model(str(tiny_model), torch.float32), layers)


def test_a_separator_token_is_new_to_the_tokenizer_and_the_student(small: Any) -> None:
    loaded = small("composing.separator_as_token=true", "composing.separator=<sep>")
    tokenizer = student_tokenizer(loaded)
    assert len(tokenizer("One.<sep>Two.", add_special_tokens=False)["input_ids"]) == 5
    model = load_student(loaded, tokenizer)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) == 49_153
    again = load_student(loaded, tokenizer)
    assert torch.equal(model.get_input_embeddings().weight, again.get_input_embeddings().weight)


def test_models_that_cannot_be_loaded_are_one_line(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(BrdError, match=r"no such model folder"):
        load_model(str(tmp_path / "gone"), torch.float32)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BrdError, match=r"no config.json"):
        load_tokenizer(str(tmp_path / "empty"))
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare)
    (bare / "model.safetensors").unlink()
    with pytest.raises(BrdError, match=r"bare: not a causal language model that can be loaded"):
        load_model(str(bare), torch.float32)
