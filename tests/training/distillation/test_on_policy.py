"""GKD and MiniLLM against their papers' formulas, written out plainly on models that are small enough to enumerate."""

import itertools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from models import gradients, llama

from brd import recipe
from brd.composing.packing import pack
from brd.training.distillation import on_policy
from brd.training.distillation.method import method_of
from brd.training.distillation.on_policy import GKD, Draws, MiniLLM, go_on
from brd.training.distillation.teacher import LogitTeacher
from brd.training.loss import IGNORED
from brd.training.objective import ModelLoss, label_count
from brd.training.student import student_tokenizer
from brd.training.trainer import train

SMALL: dict[str, Any] = {"vocabulary": 5, "spread": 1.5}
PROMPT = 3
SEEDS = torch.arange(100, 110)


def batch_of(rows: int, tokens: int = 7, vocabulary: int = 5) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "labels": ids, "sampling_seed": SEEDS[:rows], "on_policy": torch.tensor([True] * rows)}


def logs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(model(input_ids=ids).logits, -1)


def text_gradients(student: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    text = {key: batch[key] for key in ("input_ids", "labels")}
    ModelLoss()(student, text, label_count(batch["labels"])).backward()
    return gradients(student)


@pytest.mark.parametrize("plain", [True, False])
def test_minillm_is_the_gradient_of_the_reverse_kl_of_whole_answers(
    monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    # With answers of two tokens nothing is normalised by length, and without a share of the teacher's nothing is
    # weighted: the mean over all answers by the student's probabilities is then the gradient of KL(q(y) || p(y)).
    student, model = llama(0, **SMALL), llama(1, **SMALL)
    batch = batch_of(1)
    prompt = batch["input_ids"][:, :PROMPT]
    answers = torch.tensor(list(itertools.product(range(5), repeat=2)))
    ids = torch.cat([prompt.expand(len(answers), -1), answers], 1)

    def of(whose: Any) -> torch.Tensor:
        return logs(whose, ids)[:, PROMPT - 1 : -1].gather(2, answers[..., None]).sum((1, 2))

    q = of(student)
    with torch.no_grad():
        p = of(model)
    (q.exp() * (q - p)).sum().backward()
    wanted, share = gradients(student), q.detach().exp()
    beside = text_gradients(student, batch)
    objective = MiniLLM(lambda: LogitTeacher(model, 5), PROMPT, 2, 0.0, plain, chunk=2)
    total: dict[str, torch.Tensor] = {}
    for number, mass in enumerate(share):
        monkeypatch.setattr(on_policy, "go_on", lambda *_, number=number: ids[number : number + 1])
        objective(student, batch, label_count(batch["labels"])).backward()
        for name, gradient in gradients(student).items():
            total[name] = total.get(name, 0) + mass * (gradient - beside[name])
    for name, gradient in wanted.items():
        # A mean over the two tokens, where the divergence is their sum.
        torch.testing.assert_close(2 * total[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_minillm_is_equation_7_of_its_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    student, model, alpha, new = llama(0, **SMALL), llama(1, **SMALL), 0.3, 4
    batch = batch_of(3, 9)
    count = label_count(batch["labels"])
    ids = go_on(student, batch["input_ids"][:, :PROMPT], new, LogitTeacher(model, 5), SEEDS[:3], alpha)
    beside = text_gradients(student, batch)

    ours = logs(student, ids)[:, PROMPT - 1 : -1]
    with torch.no_grad():
        theirs = logs(model, ids)[:, PROMPT - 1 : -1]
    loss = torch.zeros((), dtype=torch.float64)
    for row, t in itertools.product(range(3), range(new)):
        y = int(ids[row, PROMPT + t])
        ratios = [
            float(theirs[row, s, ids[row, PROMPT + s]] - ours[row, s, ids[row, PROMPT + s]].detach())
            for s in range(t + 1, new)
        ]
        reward = sum(ratios) / len(ratios) if ratios else 0.0
        q, p = ours[row, t].detach().exp(), theirs[row, t].exp()
        weight = float(q[y] / (alpha * p[y] + (1 - alpha) * q[y]))
        single = (ours[row, t].exp() * (theirs[row, t] - ours[row, t])).sum()
        # The gradient of q / q is that of log q.
        loss = loss - weight * (single + reward * ours[row, t, y])
    (loss / (3 * new)).backward()
    wanted = gradients(student)
    monkeypatch.setattr(on_policy, "go_on", lambda *_: ids)
    MiniLLM(lambda: LogitTeacher(model, 5), PROMPT, new, alpha, True, chunk=5)(student, batch, count).backward()
    for name, gradient in gradients(student).items():
        torch.testing.assert_close(gradient - beside[name], wanted[name], rtol=1e-3, atol=1e-5, msg=name)


def divergence(p: torch.Tensor, q: torch.Tensor, beta: float) -> torch.Tensor:
    """GKD's equation 1, and its limits divided by beta and 1 - beta: the forward and the reverse KL."""
    if beta == 0:
        return (p * (p / q).log()).sum(-1)
    if beta == 1:
        return (q * (q / p).log()).sum(-1)
    m = beta * p + (1 - beta) * q
    return beta * (p * (p / m).log()).sum(-1) + (1 - beta) * (q * (q / m).log()).sum(-1)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("on", [False, True])
def test_gkd_is_its_papers_divergence(monkeypatch: pytest.MonkeyPatch, beta: float, on: bool) -> None:
    pytest.importorskip("trl")
    student, model = llama(0, **SMALL), llama(1, **SMALL)
    batch, teacher = batch_of(2, 9), LogitTeacher(model, 5)
    batch["on_policy"] = torch.tensor([on, on])
    written = go_on(student, batch["input_ids"][:, :PROMPT], 4, teacher, SEEDS[:2])
    monkeypatch.setattr(on_policy, "go_on", lambda *_: written)
    ids = written if on else batch["input_ids"]
    with torch.no_grad():
        p = logs(model, ids)[:, PROMPT - 1 : -1].exp()
    expected = divergence(p, logs(student, ids)[:, PROMPT - 1 : -1].exp(), beta).mean()
    expected.backward()
    wanted = gradients(student)
    found = GKD(lambda: teacher, PROMPT, 4, beta, True, chunk=3)(student, batch, label_count(batch["labels"]))
    found.backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    for name, gradient in gradients(student).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("on", [False, True, None])
def test_the_batches_of_a_step_add_up_whatever_is_padding(on: bool | None) -> None:
    # Nothing is set in for the sampling: what a row draws is its own, whatever rows it is beside.
    student, teacher = llama(0, **SMALL), LogitTeacher(llama(1, **SMALL), 5)
    batch = batch_of(4, 9)
    labels = batch["labels"].clone()
    # Padding behind the prompt, and within one.
    labels[1, 6:] = labels[2, 2:] = IGNORED
    batch |= {"labels": labels, "on_policy": torch.tensor([bool(on)] * 4)}
    if on is None:
        objective: Any = MiniLLM(lambda: teacher, PROMPT, 4, 0.2, True)
    else:
        pytest.importorskip("trl")
        objective = GKD(lambda: teacher, PROMPT, 4, 0.5, True)
    count, found = label_count(labels), []
    for parts in ([slice(0, 4)], [slice(0, 1), slice(1, 4)], [slice(2, 4), slice(0, 2)]):
        pieces = [{key: value[part] for key, value in batch.items()} for part in parts]
        losses = [objective(student, piece, count).float() for piece in pieces]
        torch.stack(losses).sum().backward()
        found.append((torch.stack(losses).sum(), gradients(student)))
    for loss, by in found[1:]:
        torch.testing.assert_close(loss, found[0][0])
        for name, gradient in by.items():
            torch.testing.assert_close(gradient, found[0][1][name], rtol=1e-5, atol=1e-7, msg=name)
    # What is in the padding does not matter, nor what would be written behind it.
    filled = batch | {"input_ids": batch["input_ids"].where(labels != IGNORED, (batch["input_ids"] + 1) % 5)}
    torch.testing.assert_close(objective(student, filled, count).float(), found[0][0])


def test_rows_draw_by_the_seed_and_their_place_alone() -> None:
    draws = Draws(seed=3, rows_per_step=4, on_policy=0.5)
    found = [draws.beside(row % 7, row) for row in range(400)]
    assert all(draws.beside(0, n)["sampling_seed"] == one["sampling_seed"] for n, one in enumerate(found))
    # A row that comes again is gone on with otherwise, and so is every row by another seed of the recipe.
    others = [Draws(4, 4).beside(0, n) for n in range(400)]
    assert len({int(one["sampling_seed"]) for one in (*found, *others)}) == 800
    # A step is gone on with as a whole.
    coins = torch.tensor([bool(one["on_policy"]) for one in found]).view(100, 4)
    assert bool((coins == coins[:, :1]).all())
    assert 30 < int(coins[:, 0].sum()) < 70
    assert all(bool(Draws(3, 4, 1.0).beside(0, n)["on_policy"]) for n in range(400))
    assert not any(bool(Draws(3, 4, 0.0).beside(0, n)["on_policy"]) for n in range(400))


def test_dropout_is_off_while_sampling_and_in_the_loss() -> None:
    student, teacher = llama(0, **SMALL, attention_dropout=0.9), LogitTeacher(llama(1, **SMALL), 5)
    student.train()
    batch = batch_of(2, 9)
    objective, count = MiniLLM(lambda: teacher, PROMPT, 4, 0.2, True), label_count(batch["labels"])
    torch.manual_seed(1)
    loss = objective(student, batch, count)
    assert student.training
    torch.manual_seed(1)
    assert objective(student.eval(), batch, count) == loss


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_answers_are_drawn_from_the_mixture(share: float) -> None:
    student, model = llama(0, **SMALL), llama(1, **SMALL)
    torch.manual_seed(0)
    prompts = torch.tensor([[1, 2, 3]]).expand(4000, -1)
    ids = go_on(student, prompts, 2, LogitTeacher(model, 5), torch.arange(4000), share)
    assert torch.equal(ids[:, :3], prompts)
    with torch.no_grad():
        first = share * logs(model, prompts[:1])[0, -1].exp() + (1 - share) * logs(student, prompts[:1])[0, -1].exp()
        expected = torch.zeros(5, 5, dtype=torch.float64)
        for y in range(5):
            longer = torch.tensor([[1, 2, 3, y]])
            second = share * logs(model, longer)[0, -1].exp() + (1 - share) * logs(student, longer)[0, -1].exp()
            expected[y] = first[y] * second
    found = torch.zeros(5, 5, dtype=torch.float64).index_put_(
        (ids[:, 3], ids[:, 4]), torch.tensor(1 / 4000.0).double(), True
    )
    # Five standard errors of a share of a quarter.
    assert float((found - expected).abs().max()) < 0.035


def test_an_interrupted_training_samples_as_it_would_have(recipe_file: Any, tiny_model: Path, tmp_path: Path) -> None:
    settings = ["training.objective=minillm", "distillation.prompt_tokens=4", "distillation.new_tokens=4"]
    loaded = recipe.load(str(recipe_file(arms=["base"])), [*settings, "training.save_steps=100"])
    tokenizer, tokens = student_tokenizer(loaded), tmp_path / "tokens"
    pack([list(range(100, 164))], tokens, row_tokens=16, vocabulary=len(tokenizer))

    def run(name: str, interrupted: bool = False) -> Any:
        def on_step(step: int, loss: float) -> None:
            if interrupted and step == 2:
                os.kill(os.getpid(), signal.SIGINT)

        method = method_of(loaded, tokens, tokenizer, tmp_path / "signals")
        return train(loaded, tokens, 4, tokenizer, tmp_path / name, on_step, method=method)

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("broken", interrupted=True)
    assert run("broken")["losses"] == whole["losses"]
    assert whole["loss"] == "minillm"
