"""Healing: it ends when the loss stands still, goes on where it was interrupted, and never with another's weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from brd import recipe
from brd.composing.packing import pack
from brd.run import write_json
from brd.training import healing
from brd.training.healing import heal
from brd.training.student import load_model, student_tokenizer

HEALING = {"learning_rate": 1e-2, "most_tokens": 40 * 64, "check_tokens": 4 * 64, "cooling_tokens": 4 * 64}


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    # Text of a few tokens only: there is something to learn, and an end to it.
    drawn = np.random.default_rng(0).choice([11, 12, 13, 14], size=80 * 64).tolist()
    for name, rows in (("heating", 40), ("cooling", 4), ("watched", 3)):
        pack([drawn[: rows * 64]], tmp_path / "tokens" / name, row_tokens=64, vocabulary=49_152)
    return tmp_path / "tokens"


@pytest.fixture
def loaded(recipe_file: Any) -> recipe.Recipe:
    return recipe.load(str(recipe_file(healing=HEALING, text={"healing": 0.3})))


def weights(folder: Path) -> Any:
    return load_model(str(folder), torch.float32).state_dict()


def run(loaded: recipe.Recipe, tokens: Path, folder: Path, mark: str = "one") -> dict[str, Any]:
    return heal(loaded, tokens, student_tokenizer(loaded), folder, mark)


def test_it_ends_when_the_loss_stands_still_or_the_tokens_do(
    loaded: recipe.Recipe, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, rates = healing.train, []

    def train(loaded: recipe.Recipe, source: Path, *rest: Any, **options: Any) -> Any:
        rates.append((source.name, loaded.training.learning_rate, loaded.training.schedule, loaded.training.warmup))
        return plain(loaded, source, *rest, **options)

    monkeypatch.setattr(healing, "train", train)
    lax = recipe.changed(loaded, {"healing.enough": 0.9})
    found = run(lax, tokens, tmp_path / "lax")
    assert found["stands_still"]
    assert rates == [("heating", 1e-2, "constant", 0.05), ("cooling", 1e-2, "linear", 0.0)]
    # The start, two looks, and the end after cooling.
    assert [n for n, _ in found["curve"]] == [0, 256, 512, 768]
    assert found["trained_tokens"] == 768
    assert found["curve"][-1][1] < found["curve"][0][1]
    strict = recipe.changed(loaded, {"healing.enough": 0.0, "healing.learning_rate": 1e-5})
    found = run(strict, tokens, tmp_path / "strict")
    assert not found["stands_still"]
    assert found["trained_tokens"] == 40 * 64 + 4 * 64
    # What it would go on from is kept until the result is noted, but no more than that.
    assert sorted(p.name for p in tmp_path.glob("strict.*")) == ["strict.checkpoints", "strict.work"]
    assert not (tmp_path / "strict.work" / "heated.checkpoints").exists()


def test_what_is_trained_is_not_trained_again(
    loaded: recipe.Recipe, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = recipe.changed(loaded, {"healing.enough": 0.9})
    steps: list[int] = []

    def again() -> dict[str, Any]:
        tokenizer = student_tokenizer(loaded)
        return heal(loaded, tokens, tokenizer, tmp_path / "healed", "one", lambda *told: steps.append(told[1]))

    def killed(path: Path, value: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(healing, "write_json", lambda *told: (killed if "heated" in told[0].name else write_json)(*told))
        with pytest.raises(SystemExit):
            again()
    whole = again()
    # Neither where heating had ended, nor where all had and nobody noted it.
    assert again() == whole
    assert steps == [*range(1, 5), *range(1, 3)]


@pytest.mark.parametrize("at", ["first look", "second look", "cooling", "after cooling"])
def test_an_interrupted_healing_goes_on(
    loaded: recipe.Recipe, tokens: Path, tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = recipe.changed(loaded, {"healing.enough": 0.9})
    whole = run(loaded, tokens, tmp_path / "whole")
    looks = {"first look": 1, "second look": 2, "after cooling": 3}
    plain_loss, plain_train, seen = healing._watched_loss, healing.train, 0

    def loss(*arguments: Any) -> float:
        nonlocal seen
        if seen == looks.get(at):
            raise KeyboardInterrupt
        seen += 1
        return plain_loss(*arguments)

    def train(loaded: Any, source: Path, *rest: Any, **options: Any) -> Any:
        if at == "cooling" and source.name == "cooling":
            raise KeyboardInterrupt
        return plain_train(loaded, source, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(healing, "_watched_loss", loss)
        patch.setattr(healing, "train", train)
        with pytest.raises(KeyboardInterrupt):
            run(loaded, tokens, tmp_path / "parted")
    assert run(loaded, tokens, tmp_path / "parted") == whole
    ours = weights(tmp_path / "parted")
    assert all(torch.equal(ours[name], tensor) for name, tensor in weights(tmp_path / "whole").items())


def test_what_another_healing_left_is_thrown_away(
    loaded: recipe.Recipe, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = recipe.changed(loaded, {"healing.enough": 0.9})
    other = recipe.changed(loaded, {"healing.learning_rate": 1e-4})
    whole = run(loaded, tokens, tmp_path / "whole")

    plain_train = healing.train

    def train(loaded: Any, source: Path, *rest: Any, **options: Any) -> Any:
        if source.name == "cooling":
            raise KeyboardInterrupt
        return plain_train(loaded, source, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(healing, "train", train)
        with pytest.raises(KeyboardInterrupt):
            run(other, tokens, tmp_path / "again", "another")
    assert (tmp_path / "again.work" / "heated").is_dir()
    assert run(loaded, tokens, tmp_path / "again") == whole
