"""Knowledge distillation with the documents of a row kept apart, against each document run by itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import gradients, llama

from brd import recipe
from brd.composing.packing import TokenRows, pack
from brd.errors import BrdError
from brd.sections.distillation import Distillation
from brd.training.distillation import signals
from brd.training.distillation.knowledge import KnowledgeDistillation
from brd.training.distillation.method import method_of
from brd.training.distillation.signals import about_signals, signals_of
from brd.training.distillation.teacher import LogitTeacher
from brd.training.documents import row_inputs, what_keeps_apart
from brd.training.objective import label_count
from brd.training.student import load_model, student_tokenizer
from brd.training.trainer import train

VOCABULARY, ROW = 36, 24
# The bucket is one token, so nothing of the teacher is left out, but for its bytes.
ALL = Distillation(top=VOCABULARY - 1, drawn=0, temperature=2.0)


def made(name: str, seed: int) -> Any:
    """A Llama, whose documents positions keep apart, or an OPT, whose documents only a mask does, with weights that are
    large enough for a neighbour to matter."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(seed)
    if name == "llama":
        return enlarged(llama(seed, VOCABULARY).float(), 20)
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 2}
    model = OPTForCausalLM(
        OPTConfig(vocab_size=VOCABULARY, num_attention_heads=2, max_position_embeddings=64, dropout=0.0, **sizes)
    )
    return enlarged(model, 20)


def enlarged(model: Any, times: float) -> Any:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "lm_head" not in name:
                parameter.mul_(times)
    return model


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "PART_ROWS", 2)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """Documents of 7 to 17 tokens and one that is longer than a row; rows that end in padding."""
    numbers = np.random.default_rng(0)
    lengths = [7, 11, 17, 9, 13, 31, 8, 15]
    documents = [numbers.integers(0, VOCABULARY, length).tolist() for length in lengths]
    pack(documents, tmp_path / "tokens", row_tokens=ROW, vocabulary=VOCABULARY, packing="best_fit")
    rows = TokenRows(tmp_path / "tokens")
    assert rows.filled.min() < ROW
    assert max(len(rows.ends(number)) for number in range(len(rows))) > 1
    return tmp_path / "tokens"


def documents_of(rows: TokenRows) -> list[torch.Tensor]:
    return [
        torch.from_numpy(document)[None]
        for row in range(len(rows))
        for document in np.split(rows[row][: rows.filled[row]], rows.ends(row)[:-1])
    ]


def one_by_one(student: Any, teacher: Any, documents: list[torch.Tensor], weight: float, temperature: float) -> Any:
    """Hinton's loss with all logits, summed over documents that are run one at a time."""
    total = torch.zeros(())
    for ids in documents:
        logits = student(input_ids=ids, use_cache=False).logits[0, :-1]
        with torch.no_grad():
            wanted = teacher(input_ids=ids, use_cache=False).logits[0, :-1]
        soft = torch.nn.functional.kl_div(
            torch.log_softmax(logits / temperature, -1),
            torch.log_softmax(wanted / temperature, -1),
            reduction="sum",
            log_target=True,
        )
        hard = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
        total = total + (1 - weight) * hard + weight * temperature**2 * soft
    return total


def batch_of(tokens: Path, found: Any, apart: Any) -> dict[str, torch.Tensor]:
    rows = TokenRows(tokens)
    each = [{**row_inputs(rows, number, apart), **found.beside(number, 0)} for number in range(len(rows))]
    return {name: torch.stack([row[name] for row in each]) for name in each[0]}


def kept_of(logs: torch.Tensor) -> dict[str, torch.Tensor]:
    """What signals bring along, without the rounding to bytes."""
    values, ids = logs.topk(ALL.top, dim=-1)
    found = values.exp()
    return {"teacher_ids": ids, "teacher_probabilities": found, "teacher_tail": (1 - found.sum(-1)).clamp(min=0)}


@pytest.mark.parametrize(("learner", "reader"), [("llama", "llama"), ("opt", "llama"), ("llama", "opt")])
@pytest.mark.parametrize("plain", [True, False])
def test_the_loss_and_its_gradients_are_those_of_each_document_by_itself(
    tokens: Path, tmp_path: Path, learner: str, reader: str, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = made(learner, 0), made(reader, 1)
    asked: list[torch.Tensor] = []
    pack_positions = signals.pack_positions

    def seen(logs: torch.Tensor, *rest: Any) -> Any:
        asked.append(logs)
        return pack_positions(logs, *rest)

    monkeypatch.setattr(signals, "pack_positions", seen)
    about = about_signals(tokens, {"model": "a"}, VOCABULARY, ALL, by_document=True)
    found = signals_of(tokens, tmp_path / "signals", about, lambda: LogitTeacher(teacher, VOCABULARY))
    batch = batch_of(tokens, found, what_keeps_apart(student))
    shape = (*batch["input_ids"].shape, VOCABULARY)
    exact = batch | kept_of(torch.cat(asked).view(shape))
    count = label_count(batch["labels"])
    documents = documents_of(TokenRows(tokens))
    # Every token but the first of each document is predicted, once.
    assert int(count) == sum(ids.shape[1] - 1 for ids in documents)
    expected = one_by_one(student, teacher, documents, 0.7, ALL.temperature) / count
    expected.backward()
    wanted = gradients(student)
    objective = KnowledgeDistillation(0.7, ALL.temperature, plain, chunk=5)
    loss = objective(student, exact, count)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients(student).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-5, msg=name)
    # As it is read back, in steps of a sixteenth of a nat.
    assert float(objective(student, batch, count)) == pytest.approx(float(expected), rel=0.01)
    # What is asked is not trivial: in sight of each other it is another loss, whichever of the two sees the row.
    blind = {name: tensor for name, tensor in exact.items() if name not in ("position_ids", "attention_mask")}
    assert float(objective(student, blind, count)) != pytest.approx(float(expected), rel=5e-4)
    asked.clear()
    about = about_signals(tokens, {"model": "a"}, VOCABULARY, ALL)
    signals_of(tokens, tmp_path / "signals", about, lambda: LogitTeacher(teacher, VOCABULARY))
    by_row = batch | kept_of(torch.cat(asked).view(shape))
    assert float(objective(student, by_row, count)) != pytest.approx(float(expected), rel=5e-4)


def test_padding_carries_no_loss_by_row(tokens: Path, tmp_path: Path) -> None:
    student, teacher = made("llama", 0), made("llama", 1)
    about = about_signals(tokens, {"model": "a"}, VOCABULARY, ALL)
    found = signals_of(tokens, tmp_path / "signals", about, lambda: LogitTeacher(teacher, VOCABULARY))
    rows, batch = TokenRows(tokens), batch_of(tokens, found, None)
    count = label_count(batch["labels"])
    filled = [torch.from_numpy(rows[n][: rows.filled[n]])[None] for n in range(len(rows))]
    assert int(count) == sum(ids.shape[1] - 1 for ids in filled)
    expected = one_by_one(student, teacher, filled, 0.7, ALL.temperature) / count
    objective = KnowledgeDistillation(0.7, ALL.temperature, True)
    assert float(objective(student, batch, count)) == pytest.approx(float(expected), rel=0.01)
    # Whatever stands in it.
    for number in range(len(rows)):
        batch["input_ids"][number, rows.filled[number] :] = 5
        batch["teacher_probabilities"][number, rows.filled[number] :] = 0.0
    torch.testing.assert_close(
        objective(student, batch, count), objective(student, batch_of(tokens, found, None), count)
    )


def test_signals_by_document_are_others_and_hang_on_where_documents_end(tokens: Path, tmp_path: Path) -> None:
    by_row = about_signals(tokens, {"model": "a"}, VOCABULARY, ALL)
    apart = about_signals(tokens, {"model": "a"}, VOCABULARY, ALL, by_document=True)
    # Those of rows are named as they were, so that none is asked for again.
    assert "documents" not in by_row.facts
    assert by_row.facts | {"documents": apart.documents} == apart.facts
    ends = np.fromfile(tokens / "documents.bin", dtype=np.int64)
    ends[0] -= 1
    ends.tofile(tokens / "documents.bin")
    meta = json.loads((tokens / "meta.json").read_text())
    # As another composing would have written it.
    meta.pop("sums")
    (tokens / "meta.json").write_text(json.dumps(meta))
    assert about_signals(tokens, {"model": "a"}, VOCABULARY, ALL) == by_row
    moved = about_signals(tokens, {"model": "a"}, VOCABULARY, ALL, by_document=True)
    assert len({about.name for about in (by_row, apart, moved)}) == 3


def test_a_teacher_that_cannot_keep_documents_apart_is_refused_by_name(tokens: Path, tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 1, "intermediate_size": 32}
    teacher = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, **sizes))
    about = about_signals(tokens, {"model": "a"}, VOCABULARY, ALL, by_document=True)
    with pytest.raises(BrdError, match=r"^training\.attention: the teacher, a MambaForCausalLM lets the documents"):
        signals_of(tokens, tmp_path / "signals", about, lambda: LogitTeacher(teacher, VOCABULARY))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_a_teacher_in_16_bits_keeps_them_apart_too(name: str, dtype: torch.dtype) -> None:
    assert LogitTeacher(made(name, 0).to(dtype), VOCABULARY).apart == ("mask" if name == "opt" else "positions")


def test_a_training_begins_at_that_loss(recipe_file: Any, tiny_model: Path, tmp_path: Path) -> None:
    # Weights that are large enough for a neighbour to matter, which those of a fresh model are not.
    folders = {}
    for name, seed in (("student", 0), ("teacher", 1)):
        torch.manual_seed(seed)
        model = load_model(str(tiny_model), torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.copy_(0.3 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / name)
        folders[name] = model.eval()
    keys = ["training.objective=kd", "training.attention=document", "training.rows_per_step=5"]
    keys += ["training.micro_rows=1", "distillation.top=36"]
    keys += [f"distillation.teacher_model={tmp_path / 'teacher'}", "distillation.drawn=0", "distillation.weight=1.0"]
    loaded = recipe.load(str(recipe_file(arms=["base"])), keys)
    tokenizer, tokens = student_tokenizer(loaded), tmp_path / "packed"
    tokenizer.save_pretrained(tmp_path / "teacher")
    numbers = np.random.default_rng(0)
    documents = [numbers.integers(0, 49_000, length).tolist() for length in (9, 14, 7, 20, 11, 18, 5, 8)]
    pack(documents, tokens, row_tokens=ROW, vocabulary=len(tokenizer), packing="best_fit")
    assert len(TokenRows(tokens)) == 5
    method = method_of(loaded, tokens, tokenizer, tmp_path / "signals")
    result = train(loaded, tokens, 1, tokenizer, tmp_path / "out", start=tmp_path / "student", method=method)
    assert result["apart"] == "positions"
    # With one bucket it is a bound from below of the divergence, which the same bound of the reference is.
    total = 0.0
    for ids in documents_of(TokenRows(tokens)):
        with torch.no_grad():
            p, q = (
                torch.log_softmax(folders[name](input_ids=ids).logits[0, :-1], -1) for name in ("teacher", "student")
            )
        likely = p.topk(36).indices
        rest = [logs.exp().scatter(1, likely, 0.0).sum(1) for logs in (p, q)]
        kept = p.gather(1, likely).exp() * (p - q).gather(1, likely)
        total += float(kept.sum() + (rest[0] * (rest[0] / rest[1]).log()).sum())
    count = sum(ids.shape[1] - 1 for ids in documents_of(TokenRows(tokens)))
    assert result["losses"][0][1] == pytest.approx(total / count, rel=0.01)
