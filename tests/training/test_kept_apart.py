"""Documents of one row kept apart: in every architecture by what its logits do, not by its name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from brd import recipe
from brd.composing.packing import TokenRows, pack, tokenizer_mark
from brd.errors import BrdError
from brd.training.documents import row_inputs, trained_tokens, what_keeps_apart
from brd.training.loss import IGNORED, chunked_causal_loss
from brd.training.student import load_model, load_student, student_tokenizer
from brd.training.trainer import train

VOCABULARY = 64
FIRST, SECOND, OTHER = [5, 9, 2, 7, 1] * 4, [11, 3, 8] * 5, [44, 21, 30, 60] * 5

GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 0, "eos_token_id": 0}
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
GEMMA = {**LLAMA, "head_dim": 8, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
MODELS: dict[str, dict[str, Any]] = {
    "Llama": LLAMA,
    "Qwen2": LLAMA,
    "Qwen3": {**LLAMA, "head_dim": 8},
    "Mistral": {**LLAMA, "sliding_window": 6},
    "Phi3": LLAMA | {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0},
    "Gemma2": GEMMA,
    "Gemma3": GEMMA,
    "GPTNeoX": {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"},
    "GPT2": GPT2,
    "OPT": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    },
    "XGLM": {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 128},
}
# transformers' names of classes whose configurations are named otherwise.
CLASSES = {"GPT2": "GPT2LMHeadModel"}


def made(name: str) -> Any:
    config = getattr(transformers, "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config")
    torch.manual_seed(0)
    model = getattr(transformers, CLASSES.get(name, f"{name}ForCausalLM"))(
        config(vocab_size=VOCABULARY, **MODELS[name])
    ).eval()
    # Weights that are large enough for a token to matter to those behind it.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return model


def batch(tmp_path: Path, documents: list[list[int]], apart: Any, row_tokens: int = 40) -> dict[str, torch.Tensor]:
    pack(documents, tmp_path / "p", row_tokens=row_tokens, vocabulary=VOCABULARY, packing="best_fit")
    return {name: tensor[None] for name, tensor in row_inputs(TokenRows(tmp_path / "p"), 0, apart).items()}


@torch.no_grad()
def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = model(**{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False).logits[0]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_a_document_does_not_see_its_neighbours(tmp_path: Path, name: str) -> None:
    model = made(name)
    apart = what_keeps_apart(model)
    assert apart == ("mask" if name in ("XGLM", "OPT") else "positions")
    alone = logits(model, {"input_ids": torch.tensor([SECOND])})
    place = slice(len(FIRST), len(FIRST) + len(SECOND))
    by_neighbour = [logits(model, batch(tmp_path, [neighbour, SECOND], apart))[place] for neighbour in (FIRST, OTHER)]
    # The same whatever stands before it, and what it would be at the beginning of a row: positions start again.
    assert torch.allclose(by_neighbour[0], by_neighbour[1], atol=1e-5)
    assert torch.allclose(by_neighbour[0], alone, atol=1e-4)
    # What is asked is not trivial: in sight of each other they differ.
    seeing = [logits(model, batch(tmp_path, [neighbour, SECOND], None))[place] for neighbour in (FIRST, OTHER)]
    assert (seeing[0] - seeing[1]).abs().max() > 0.01


@pytest.mark.parametrize("name", ["XGLM", "OPT"])
def test_positions_alone_would_not_do_for_some(tmp_path: Path, name: str) -> None:
    model = made(name)
    place = slice(len(FIRST), len(FIRST) + len(SECOND))
    found = [logits(model, batch(tmp_path, [n, SECOND], "positions"))[place] for n in (FIRST, OTHER)]
    assert (found[0] - found[1]).abs().max() > 0.01


def test_a_model_whose_documents_see_each_other_whatever_it_is_told_is_refused() -> None:
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=1, intermediate_size=32
    )
    model = transformers.MambaForCausalLM(config)
    with pytest.raises(BrdError, match=r"^training.attention: a MambaForCausalLM lets .* use training.attention: row$"):
        what_keeps_apart(model)
    assert model.training


def test_labels_leave_out_padding_and_what_no_document_can_predict(tmp_path: Path) -> None:
    documents = [[1, 2, 3], [4, 5]]
    plain = batch(tmp_path, documents, None, row_tokens=8)
    assert plain["labels"][0].tolist() == [1, 2, 3, 4, 5, IGNORED, IGNORED, IGNORED]
    assert "position_ids" not in plain
    apart = batch(tmp_path, documents, "positions", row_tokens=8)
    assert apart["labels"][0].tolist() == [IGNORED, 2, 3, IGNORED, 5, IGNORED, IGNORED, IGNORED]
    assert apart["position_ids"][0].tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    # A row of a stream begins in the middle of a document, and there it starts at 0.
    pack([[1, 2, 3], [4, 5, 6]], tmp_path / "s", row_tokens=2, vocabulary=9)
    rows = TokenRows(tmp_path / "s")
    found = [row_inputs(rows, n, "positions")["position_ids"].tolist() for n in range(3)]
    assert found == [[0, 1], [0, 0], [0, 1]]


@pytest.mark.parametrize("name", ["Llama", "OPT", "XGLM"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_chunked_loss_keeps_documents_apart_too(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    model = made(name)
    inputs = batch(tmp_path, [FIRST, SECOND], what_keeps_apart(model))
    ids, labels = inputs.pop("input_ids"), inputs.pop("labels")
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        own = model(input_ids=ids, labels=labels, **inputs, use_cache=False).loss
        model.config.use_cache = False
        chunked = chunked_causal_loss(model, ids, labels, **inputs)
        # And both are the mean over the documents, each by itself.
        each = [model(input_ids=torch.tensor([d]), labels=torch.tensor([d])).loss.item() for d in (FIRST, SECOND)]
    total = each[0] * (len(FIRST) - 1) + each[1] * (len(SECOND) - 1)
    expected = total / (len(FIRST) + len(SECOND) - 2)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    assert float(own) == pytest.approx(expected, rel=tolerance)
    assert float(chunked) == pytest.approx(expected, rel=tolerance)


@pytest.fixture
def load(recipe_file: Any) -> Any:
    def load(*overrides: str) -> recipe.Recipe:
        return recipe.load(str(recipe_file()), ["training.learning_rate=1e-2", *overrides])

    return load


def packed(tokenizer: Any, folder: Path) -> Path:
    """Documents of 20 and 30 tokens in rows of 64."""
    ids = [[(n * 37 + k * k) % 5000 for k in range(20 + 10 * (n % 2))] for n in range(24)]
    about = {"tokenizer": tokenizer_mark(tokenizer)}
    pack(ids, folder, row_tokens=64, vocabulary=len(tokenizer), packing="best_fit", about=about)
    return folder


def test_training_by_documents_is_the_same_compiled_or_by_the_models_own_loss(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: dict[str, list[float]] = {}
    for name, overrides in {"row": [], "document": ["training.attention=document"]}.items():
        loaded = load(*overrides)
        tokenizer = student_tokenizer(loaded)
        tokens = packed(tokenizer, tmp_path / "tokens")
        result = train(loaded, tokens, 4, tokenizer, tmp_path / name)
        losses[name] = [loss for _, loss in result["losses"]]
        assert result["loss"] == "chunked"
        assert result.get("apart") == ("positions" if name == "document" else None)
        # Padding is not counted: every document is trained once in so many rows.
        rows = TokenRows(tokens)
        assert result["trained_tokens"] < 4 * 2 * 64
        assert trained_tokens(rows, list(range(len(rows)))) == 12 * 50
    assert losses["row"] != losses["document"]
    compiled = load("training.attention=document", "training.compile=true")
    result = train(compiled, tokens, 4, tokenizer, tmp_path / "compiled")
    assert [loss for _, loss in result["losses"]] == pytest.approx(losses["document"], rel=1e-3)
    monkeypatch.setattr("brd.training.trainer.can_be_chunked", lambda *_: False)
    result = train(load("training.attention=document"), tokens, 4, tokenizer, tmp_path / "own")
    assert result["loss"] == "model"
    assert [loss for _, loss in result["losses"]] == pytest.approx(losses["document"], rel=1e-3)


@pytest.mark.parametrize("chunked", [True, False])
def test_the_loss_that_is_trained_is_that_of_each_document_by_itself(
    load: Any, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, chunked: bool
) -> None:
    # Weights that are large enough for a neighbour to matter, which those of a fresh model are not.
    student = load_model(str(tiny_model), torch.float32)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    student.save_pretrained(tmp_path / "large")
    loaded = load("training.attention=document", "training.rows_per_step=10")
    tokenizer = student_tokenizer(loaded)
    tokens = packed(tokenizer, tmp_path / "tokens")
    if not chunked:
        monkeypatch.setattr("brd.training.trainer.can_be_chunked", lambda *_: False)
    result = train(loaded, tokens, 1, tokenizer, tmp_path / "out", start=tmp_path / "large")
    rows, total, count = TokenRows(tokens), 0.0, 0
    for row in range(len(rows)):
        for document in np.split(rows[row][: rows.filled[row]], rows.ends(row)[:-1]):
            ids = torch.from_numpy(document)[None]
            with torch.no_grad():
                total += float(student.eval()(input_ids=ids, labels=ids).loss) * (len(document) - 1)
            count += len(document) - 1
    assert result["losses"][0][1] == pytest.approx(total / count, abs=2e-4)


def test_tokens_of_another_tokenizer_are_refused(load: Any, tmp_path: Path) -> None:
    loaded = load()
    tokens = packed(student_tokenizer(loaded), tmp_path / "tokens")
    other = student_tokenizer(load("composing.separator_as_token=true", "composing.separator=<sep>"))
    with pytest.raises(BrdError, match=r"tokens: these are the tokens of another tokenizer .* run `brd compose` again"):
        train(loaded, tokens, 1, other, tmp_path / "out")


def test_a_vocabulary_larger_than_the_embedding_is_refused_with_both_numbers(
    load: Any, tmp_path: Path, tiny_model: Path
) -> None:
    loaded = load("composing.separator_as_token=true", "composing.separator=<sep>")
    tokenizer = student_tokenizer(loaded)
    tokens = packed(tokenizer, tmp_path / "tokens")
    with pytest.raises(BrdError, match=r"a vocabulary of 49153, the student's embedding has 49152"):
        train(loaded, tokens, 1, tokenizer, tmp_path / "out", start=tiny_model)
    small = load_model(str(tiny_model), torch.float32)
    small.resize_token_embeddings(49_000)
    small.save_pretrained(tmp_path / "small")
    tokenizer = student_tokenizer(load())
    tokenizer.save_pretrained(tmp_path / "small")
    named = load(f"student.model={tmp_path / 'small'}")
    with pytest.raises(BrdError, match=r"student.model: .*small has a tokenizer of 49152 .* embedding of 49000"):
        load_student(named, tokenizer)
