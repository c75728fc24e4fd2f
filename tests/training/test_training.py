import itertools
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from brd import recipe
from brd.composing.packing import TokenRows, pack
from brd.errors import BrdError
from brd.training import trainer
from brd.training.objective import Method
from brd.training.student import keep_layers, load_model, load_student, load_tokenizer, student_tokenizer
from brd.training.trainer import row_order, train


@pytest.fixture
def small(recipe_file: Any, little_model: Path) -> Any:
    def load(*overrides: str) -> recipe.Recipe:
        return recipe.load(str(recipe_file(student={"model": str(little_model)})), list(overrides))

    return load


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    # Of few kinds, so that there is something to learn.
    numbers = np.random.default_rng(0).integers(0, 16, 10 * 64).tolist()
    pack([numbers], tmp_path / "tokens", row_tokens=64, vocabulary=512)
    return tmp_path / "tokens"


def assert_same_weights(folder: Path, expected: Path) -> None:
    ours, theirs = (load_model(str(path), torch.float32).state_dict() for path in (folder, expected))
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


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
    assert_same_weights(tmp_path / "broken", tmp_path / "whole")


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2e-3)])
def test_the_chunked_loss_trains_as_the_models_own(
    small: Any, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, tolerance: float
) -> None:
    loaded = small(
        "training.learning_rate=1e-2", f"training.dtype={dtype}", "training.rows_per_step=4", "training.micro_rows=2"
    )
    tokenizer = student_tokenizer(loaded)
    losses: dict[str, list[float]] = {"chunked": [], "model": []}
    for name in losses:
        monkeypatch.setattr(trainer, "can_be_chunked", lambda *_, chunked=name == "chunked": chunked)
        log = losses[name]
        result = train(loaded, tokens, 5, tokenizer, tmp_path / name, lambda _, loss, log=log: log.append(loss))
        assert result["loss"] == name
        assert not torch.is_autocast_enabled("cpu")
    assert losses["chunked"] == pytest.approx(losses["model"], rel=tolerance)
    assert losses["model"][-1] < losses["model"][0] - 0.1


def test_compiled_layers_train_as_the_others(small: Any, tokens: Path, tmp_path: Path) -> None:
    losses: dict[str, list[float]] = {"true": [], "false": []}
    for name, log in losses.items():
        loaded = small("training.learning_rate=1e-2", f"training.compile={name}")
        tokenizer = student_tokenizer(loaded)
        train(loaded, tokens, 5, tokenizer, tmp_path / name, lambda _, loss, log=log: log.append(loss))
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-4)
    names, configs = [], []
    for name in losses:
        student = load_model(str(tmp_path / name), torch.float32)
        names.append(list(student.state_dict()))
        configs.append(student.config.to_dict() | {"_name_or_path": ""})
    assert names[0] == names[1]
    assert configs[0] == configs[1]
    assert configs[0]["use_cache"]


def test_where_torch_cannot_compile_the_error_is_one_line(
    small: Any, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile(*_: Any) -> Any:
        raise RuntimeError("no working C++ compiler found\nand much more")

    monkeypatch.setattr(torch, "compile", compile)
    loaded = small("training.compile=true")
    with pytest.raises(BrdError, match=r"^training\.compile: torch cannot compile here \(no working.*found\); install"):
        train(loaded, tokens, 5, student_tokenizer(loaded), tmp_path / "student")


def test_a_student_whose_logits_are_capped_trains_by_its_own_loss(
    small: Any, tokens: Path, tmp_path: Path, little_tokenizer: Any
) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    tokenizer = little_tokenizer
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path / "capped")
    tokenizer.save_pretrained(tmp_path / "capped")
    loaded = small(f"student.model={tmp_path / 'capped'}")
    assert train(loaded, tokens, 1, tokenizer, tmp_path / "out")["loss"] == "model"
    assert train(small(), tokens, 1, tokenizer, tmp_path / "plain")["loss"] == "chunked"


def test_training_starts_from_another_folder(small: Any, tokens: Path, tmp_path: Path) -> None:
    loaded = small("training.learning_rate=1e-2", "student.layers=[1]")
    tokenizer = student_tokenizer(loaded)
    train(loaded, tokens, 3, tokenizer, tmp_path / "first")
    train(loaded, tokens, 4, tokenizer, tmp_path / "second", start=tmp_path / "first")
    named = small("training.learning_rate=1e-2", f"student.model={tmp_path / 'first'}")
    train(named, tokens, 4, tokenizer, tmp_path / "named")
    assert_same_weights(tmp_path / "second", tmp_path / "named")


class Watcher:
    """Ends training at a step; keeps what it was shown."""

    def __init__(self, end: int = 0) -> None:
        self.end = end
        self.steps: list[int] = []

    def __call__(self, model: Any, step: int) -> bool:
        assert not model.training
        assert not torch.is_grad_enabled()
        self.steps.append(step)
        return step == self.end


CONSTANT = ["training.learning_rate=1e-2", "training.schedule=constant", "training.warmup=0"]


def test_watching_changes_nothing_until_it_ends_training(small: Any, tokens: Path, tmp_path: Path) -> None:
    loaded = small(*CONSTANT)
    tokenizer = student_tokenizer(loaded)
    whole = train(loaded, tokens, 6, tokenizer, tmp_path / "whole")
    watch = Watcher(end=6)
    ended = train(loaded, tokens, 20, tokenizer, tmp_path / "ended", watch=watch, watch_steps=3)
    assert watch.steps == [3, 6]
    assert ended == whole
    assert (ended["steps"], ended["trained_tokens"]) == (6, 6 * 2 * 64)
    assert not (tmp_path / "ended.checkpoints").exists()
    assert_same_weights(tmp_path / "ended", tmp_path / "whole")


def test_a_watched_training_from_another_folder_goes_on_after_an_interruption(
    small: Any, tokens: Path, tmp_path: Path, little_model: Path
) -> None:
    loaded = small(*CONSTANT, "training.save_steps=100", "student.model=nowhere")
    tokenizer = load_tokenizer(str(little_model))
    options: dict[str, Any] = {"start": little_model, "watch_steps": 2}
    whole = train(loaded, tokens, 20, tokenizer, tmp_path / "whole", watch=Watcher(end=6), **options)
    broken, watch = tmp_path / "broken", Watcher(end=6)

    def interrupt(step: int, loss: float) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(loaded, tokens, 20, tokenizer, broken, interrupt, watch=watch, **options)
    assert train(loaded, tokens, 20, tokenizer, broken, watch=watch, **options) == whole
    assert watch.steps == [2, 4, 6]
    assert_same_weights(broken, tmp_path / "whole")


def test_a_training_killed_after_the_watch_ended_it_is_not_taken_further(
    small: Any, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = small(*CONSTANT, "training.save_steps=100")
    tokenizer = student_tokenizer(loaded)
    whole = train(loaded, tokens, 3, tokenizer, tmp_path / "whole")

    def killed(*_: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save", killed)
        with pytest.raises(SystemExit):
            train(loaded, tokens, 20, tokenizer, tmp_path / "killed", watch=Watcher(end=3), watch_steps=3)
    watch, steps = Watcher(), list[int]()
    again = train(
        loaded, tokens, 20, tokenizer, tmp_path / "killed", lambda n, _: steps.append(n), watch=watch, watch_steps=3
    )
    assert again == whole
    assert (watch.steps, steps) == ([], [])
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")


class Slope:
    """An objective of one weight's value: AdamW moves it by the learning rate, step by step."""

    name = "slope"

    def __call__(self, model: Any, batch: Any, count: torch.Tensor) -> torch.Tensor:
        return model.model.norm.weight.sum()


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_is_what_the_recipe_says_at_every_step(train_small: Any, schedule: str) -> None:
    values = [1.0]

    def look(model: Any, step: int) -> bool:
        values.append(float(model.model.norm.weight[0]))
        return False

    keys = [f"training.schedule={schedule}", "training.warmup=0.25", "training.weight_decay=0"]
    train_small(8, *keys, objective=Slope(), watch=look, watch_steps=1)
    falling = {"cosine": lambda gone: (1 + math.cos(math.pi * gone)) / 2, "linear": lambda gone: 1 - gone}
    left = [falling.get(schedule, lambda gone: 1.0)(n / 6) for n in range(6)]
    moved = [before - after for before, after in itertools.pairwise(values)]
    assert moved == pytest.approx([1e-2 * share for share in (0, 0.5, *left)], abs=1e-6)


def test_what_rows_bring_along_is_theirs(train_small: Any, tmp_path: Path) -> None:
    rows = TokenRows(tmp_path / "tokens")
    seen: list[int] = []
    places: list[int] = []

    class Beside:
        name = "beside"

        def __call__(self, model: Any, batch: Any, count: torch.Tensor) -> torch.Tensor:
            for ids, number in zip(batch["input_ids"], batch["number"].tolist(), strict=True):
                assert ids.tolist() == rows[number].tolist()
                seen.append(number)
            places.extend(batch["place"].tolist())
            return model.model.norm.weight.sum()

    def beside(number: int, place: int) -> dict[str, torch.Tensor]:
        return {"number": torch.tensor(number), "place": torch.tensor(place)}

    train_small(5, method=Method(lambda chunked: Beside(), beside))
    assert sorted(seen) == list(range(10)) != seen
    assert places == list(range(10))


def test_a_loss_that_is_no_number_stops_with_advice(
    small: Any, tokens: Path, tmp_path: Path, little_model: Path
) -> None:
    broken = tmp_path / "nan"
    model = load_model(str(little_model), torch.float32)
    model.model.norm.weight.data.fill_(float("nan"))
    model.save_pretrained(broken)
    load_tokenizer(str(little_model)).save_pretrained(broken)
    loaded = small(f"student.model={broken}")
    with pytest.raises(BrdError, match=r"the loss is nan at step 1; lower training.learning_rate"):
        train(loaded, tokens, 4, student_tokenizer(loaded), tmp_path / "out")


def test_rows_longer_than_the_students_window_are_refused(small: Any, tmp_path: Path) -> None:
    pack([[1, 2, 3]], tmp_path / "long", row_tokens=4096, vocabulary=512)
    loaded = small()
    with pytest.raises(BrdError, match=r"composing.row_tokens: 4096 .* 2048"):
        train(loaded, tmp_path / "long", 1, student_tokenizer(loaded), tmp_path / "out")


def test_cut_students_are_the_kept_layers(small: Any, tmp_path: Path, tiny_model: Path) -> None:
    loaded = small("student.layers=[3, 0]", f"student.model={tiny_model}")
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
    assert tokenizer("One.<sep>Two.", add_special_tokens=False)["input_ids"].count(512) == 1
    model = load_student(loaded, tokenizer)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) == 513
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


def test_checkpoints_of_another_training_are_not_gone_on_with(small: Any, tokens: Path, tmp_path: Path) -> None:
    loaded = small("training.learning_rate=1e-2")
    tokenizer = student_tokenizer(loaded)

    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(loaded, tokens, 4, tokenizer, tmp_path / "a", stop, mark="one")
    assert list((tmp_path / "a.checkpoints").glob("checkpoint-*"))
    steps: list[int] = []
    train(loaded, tokens, 4, tokenizer, tmp_path / "a", lambda step, _: steps.append(step), mark="another")
    assert steps == [1, 2, 3, 4]


def test_another_objective_is_what_is_lowered(small: Any, tokens: Path, tmp_path: Path) -> None:
    loaded = small("training.rows_per_step=4", "training.micro_rows=2")
    tokenizer = student_tokenizer(loaded)
    counts: list[int] = []

    class Half:
        name = "half"

        def __call__(self, model: Any, batch: Any, count: torch.Tensor) -> torch.Tensor:
            counts.append(int(count))
            logits = model(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1)
            return torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:].flatten(), reduction="sum") / (
                2 * count
            )

    half = train(loaded, tokens, 2, tokenizer, tmp_path / "half", objective=Half())
    whole = train(loaded, tokens, 2, tokenizer, tmp_path / "whole")
    assert half["loss"] == "half"
    assert counts == [4 * 63] * 4
    assert 2 * half["losses"][0][1] == pytest.approx(whole["losses"][0][1], abs=2e-4)
