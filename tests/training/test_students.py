"""Students of several classes: loaded, cut, trained, saved and used, with and without LoRA."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from brd import recipe
from brd.composing.packing import TokenRows, pack
from brd.errors import BrdError
from brd.evaluation.items import Item
from brd.evaluation.scoring import Scorer, score_reference
from brd.teachers.shared_prefix import SharedPrefix
from brd.training import layers, trainer
from brd.training.layers import block_influence, cut_to, keep_layers, measure
from brd.training.student import load_model, load_student, student_tokenizer
from brd.training.trainer import train

SIZE = 32
LAYERS = 4
CLASSES = ("xglm", "gpt2", "smollm2", "qwen2")


def config(name: str, vocabulary: int) -> Any:
    """A small configuration of the class of XGLM-564M, GPT-2, SmolLM2 or Qwen2.5."""
    import transformers as t

    small: dict[str, Any] = {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    usual = {"hidden_size": SIZE, "intermediate_size": 64, "num_hidden_layers": LAYERS, **heads, **small}
    if name == "xglm":
        return t.XGLMConfig(d_model=SIZE, ffn_dim=64, num_layers=LAYERS, attention_heads=4, **small)
    if name == "gpt2":
        return t.GPT2Config(n_embd=SIZE, n_layer=LAYERS, n_head=4, **small)
    if name == "smollm2":
        return t.LlamaConfig(tie_word_embeddings=True, rope_theta=100000.0, **usual)
    kinds = ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]
    return t.Qwen2Config(
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=2,
        layer_types=kinds,
        tie_word_embeddings=True,
        **usual,
    )


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> dict[str, Path]:
    import transformers as t

    found = {}
    for name in CLASSES:
        torch.manual_seed(0)
        model = t.AutoModelForCausalLM.from_config(config(name, len(tokenizer)))
        # Large enough that every layer tells.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
        found[name] = tmp_path_factory.mktemp("students") / name
        model.save_pretrained(found[name])
        tokenizer.save_pretrained(found[name])
    return found


@pytest.fixture
def load(recipe_file: Any) -> Callable[..., recipe.Recipe]:
    return lambda *overrides: recipe.load(str(recipe_file()), ["training.learning_rate=1e-2", *overrides])


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    numbers = np.random.default_rng(0).integers(3, 49_000, 8 * 32).tolist()
    folder = tmp_path_factory.mktemp("rows") / "tokens"
    pack([numbers], folder, row_tokens=32, vocabulary=49_152)
    return folder


IDS = torch.arange(40)[None] * 3 + 7


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_is_cut_trained_saved_and_used(
    name: str, folders: dict[str, Path], load: Any, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(f"student.model={folders[name]}", "student.layers=[0, 2, 3]")
    tokenizer = student_tokenizer(loaded)
    whole = logits(load_model(str(folders[name]), torch.float32))
    start = logits(load_student(loaded, tokenizer))
    assert not torch.allclose(start, whole, atol=0.1)
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
    assert again.config.num_hidden_layers == 3
    assert torch.equal(logits(again), trained[0])
    assert not torch.allclose(trained[0], start, atol=1e-3)
    # With a cache the layers must be numbered anew.
    step = again(input_ids=IDS[:, :-1], use_cache=True)
    last = again(input_ids=IDS[:, -1:], past_key_values=step.past_key_values).logits
    assert torch.allclose(last[0, -1], trained[0][0, -1], atol=1e-4)
    # It is tested and it reads, as every student is and does.
    item = Item("x/0", "The ferry was", (" late", " red again"), (1.0, 0.0))
    ((first, second),) = (found.candidates for found in Scorer(again, tokenizer).score([item]))
    plainly = score_reference(again, tokenizer, item).candidates
    assert [first.logprob, second.logprob] == pytest.approx([one.logprob for one in plainly], abs=1e-3)
    engine = SharedPrefix(again, tokenizer, batch_size=2)
    answers = dict(engine.answer("One two", [" three", " four five"], stop=["\n"], max_new_tokens=3))
    assert sorted(answers) == [0, 1]


@pytest.mark.parametrize("name", CLASSES)
def test_influence_is_what_a_layer_changes(name: str, folders: dict[str, Path], tokens: Path) -> None:
    model, rows = load_model(str(folders[name]), torch.float32), TokenRows(tokens)
    found = block_influence(model, rows)
    ids = torch.stack([torch.from_numpy(rows[n]) for n in range(len(rows))])
    with torch.no_grad():
        # A layer's own input and output, the last one's before the model's last norm.
        states = []
        _, _, stack = layers.stack(model) or pytest.fail("no layers")
        hooks = [layer.register_forward_hook(lambda _, args, out: states.append((args[0], out))) for layer in stack]
        model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    expected = []
    for before, after in states:
        after = after[0] if isinstance(after, tuple) else after
        cosine = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
        expected.append(float(1 - cosine.mean()))
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_layers_that_do_least_go_first(folders: dict[str, Path], load: Any, tokens: Path, tmp_path: Path) -> None:
    model = load_model(str(folders["smollm2"]), torch.float32)
    for number in (1, 2):
        # Nothing, and almost nothing, is added to what passes through.
        for part in (model.model.layers[number].self_attn.o_proj, model.model.layers[number].mlp.down_proj):
            part.weight.data.mul_(0 if number == 1 else 1e-2)
    model.save_pretrained(tmp_path / "idle")
    student_tokenizer(load()).save_pretrained(tmp_path / "idle")
    loaded = load(f"student.model={tmp_path / 'idle'}", "student.keep_layers=2")
    whole = load_model(str(tmp_path / "idle"), torch.float32)
    found = measure(loaded, whole, TokenRows(tokens))
    assert found["kept"] == [0, 3]
    assert found["influence"][1] == pytest.approx(0, abs=1e-5)
    assert 0 < found["influence"][2] < min(found["influence"][0], found["influence"][3])
    assert found["tokens"] == 8 * 32
    cut = load_student(cut_to(loaded, found["kept"]), student_tokenizer(loaded))
    assert (logits(cut) - logits(whole)).abs().mean() < 0.2 * logits(whole).abs().mean()
    for number in (4, 5):
        with pytest.raises(BrdError, match=rf"^student.keep_layers: should be 1 to 3.*got {number}"):
            measure(load(f"student.keep_layers={number}"), whole, TokenRows(tokens))


def test_layers_whose_numbers_matter_are_not_cut(tokenizer: Any) -> None:
    import transformers as t

    scaled = t.GPT2LMHeadModel(
        t.GPT2Config(n_embd=8, n_layer=4, n_head=2, vocab_size=9, scale_attn_by_inverse_layer_idx=True)
    )
    with pytest.raises(BrdError, match="scale_attn_by_inverse_layer_idx"):
        keep_layers(scaled, [0, 2])
    mixed = t.Qwen2MoeConfig(
        hidden_size=8,
        intermediate_size=8,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        vocab_size=9,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=2,
        mlp_only_layers=[1],
    )
    with pytest.raises(BrdError, match="Qwen2MoeForCausalLM are not alike"):
        keep_layers(t.Qwen2MoeForCausalLM(mixed), [1, 2])


def test_one_way_to_cut(load: Any) -> None:
    with pytest.raises(BrdError, match=r"student: .*layers and student.keep_layers both"):
        load("student.keep_layers=2", "student.layers=[0, 1]")


@pytest.mark.parametrize("name", ["xglm", "gpt2"])
def test_dropout_is_the_students_own_or_the_recipes(name: str, folders: dict[str, Path], load: Any) -> None:
    def differs(*overrides: str) -> bool:
        loaded = load(f"student.model={folders[name]}", *overrides)
        model = load_student(loaded, student_tokenizer(loaded)).train()
        return not torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)

    assert differs()
    assert not differs("student.dropout=0")
    assert differs("student.dropout=0.3")


def test_a_plan_knows_how_many_parameters_are_left(load: Any) -> None:
    from brd.plan.training import parameters

    tokenizer = student_tokenizer(load())
    measured, listed, whole = (
        parameters(load(*said), tokenizer) for said in (["student.keep_layers=2"], ["student.layers=[1, 3]"], [])
    )
    assert measured == listed < whole
