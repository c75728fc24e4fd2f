"""Distillation on what the student writes itself: GKD and MiniLLM, each after its paper (docs/distillation.md).

A row's first tokens are the prompt, and what is written is gone on with for a fixed number of tokens: rows are a stream
of documents ended by EOS, which is a token like any other there. So all answers are equally long, and none is padded.
Dropout is off throughout, so that what is trained is what has sampled.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from brd.errors import BrdError
from brd.training.distillation.chunks import CHUNK, summed_by_chunks
from brd.training.distillation.teacher import LogitTeacher
from brd.training.objective import ChunkedLoss, ModelLoss, label_count


@contextmanager
def _without_dropout(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def go_on(student: Any, prompts: torch.Tensor, new: int, teacher: LogitTeacher, share: float = 0.0) -> torch.Tensor:
    """``prompts`` [rows, tokens] with ``new`` tokens behind each, [rows, tokens + new].

    Each is drawn from ``share`` p + (1 - ``share``) q, p the teacher's and q the student's distribution over the
    teacher's ``known`` ids (MiniLLM's teacher-mixed sampling; GKD's without a share).
    """
    ids, past, theirs = prompts, None, None
    for _ in range(new):
        step = ids if past is None else ids[:, -1:]
        output = student(input_ids=step, past_key_values=past, use_cache=True)
        past = output.past_key_values
        mixed = torch.softmax(output.logits[:, -1, : teacher.known].float(), -1)
        if share > 0:
            with torch.autocast(ids.device.type, enabled=False):
                output = teacher.model(input_ids=step, past_key_values=theirs, use_cache=True)
            theirs = output.past_key_values
            mixed = share * torch.softmax(output.logits[:, -1, : teacher.known].float(), -1) + (1 - share) * mixed
        ids = torch.cat([ids, torch.multinomial(mixed, 1)], 1)
    return ids


@dataclass(frozen=True, slots=True)
class _Answers:
    """What was answered to prompts: ``ids`` [rows, tokens], the positions that predict a token of an answer, those
    tokens [N], and the teacher's states there [N, H]."""

    ids: torch.Tensor
    kept: torch.Tensor
    targets: torch.Tensor
    states: torch.Tensor


def _answers(ids: torch.Tensor, prompt: int, teacher: LogitTeacher) -> _Answers:
    kept = torch.zeros_like(ids, dtype=torch.bool)
    kept[:, prompt - 1 : -1] = True
    return _Answers(ids, kept, ids[:, prompt:].flatten(), teacher.states(ids)[kept])


def _trls_divergence() -> Callable[..., Any]:
    with warnings.catch_warnings():
        # That it is experimental is why its version is pinned and its divergence tested.
        warnings.simplefilter("ignore")
        from trl.experimental.gkd import GKDTrainer
    found: Callable[..., Any] = GKDTrainer.generalized_jsd_loss
    return found


def _check_alone(name: str) -> None:
    # Each process would sample for itself, where all have to call a model with shared weights as often.
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise BrdError(f"{name} samples while it trains, which it does in one process only; train this arm with one")


@dataclass(frozen=True, slots=True)
class GKD:
    """On-policy distillation (Agarwal et al. 2024, arXiv:2306.13649), its divergence by TRL.

    A batch is gone on with by the student with probability ``on_policy``, else taken as the text has it; the loss is
    the generalised Jensen-Shannon divergence with ``beta`` (0: KL(teacher || student), 1: KL(student || teacher)) at
    the tokens behind the prompt, a mean over the batch.
    """

    teacher: Callable[[], LogitTeacher]
    prompt_tokens: int
    new_tokens: int
    on_policy: float
    beta: float
    plain: bool
    chunk: int = CHUNK
    name: str = "gkd"

    def __call__(self, model: Any, batch: Mapping[str, torch.Tensor], count: torch.Tensor) -> torch.Tensor:
        _check_alone(self.name)
        with _without_dropout(model):
            return self._loss(model, batch, count)

    def _loss(self, model: Any, batch: Mapping[str, torch.Tensor], count: torch.Tensor) -> torch.Tensor:
        ids, prompt, teacher = batch["input_ids"], self.prompt_tokens, self.teacher()
        # Drawn by the generator whose state checkpoints hold.
        if float(torch.rand(())) < self.on_policy:
            ids = go_on(model, ids[:, :prompt], self.new_tokens, teacher)
        asked, divergence = _answers(ids, prompt, teacher), _trls_divergence()

        def loss_of(logits: torch.Tensor, part: slice) -> torch.Tensor:
            wanted, known = teacher.log_probabilities(asked.states[part]), logits[:, : teacher.known]
            found: torch.Tensor = divergence(known, wanted, beta=self.beta, reduction="sum")
            return found

        total = summed_by_chunks(model, ids, asked.kept, self.plain, loss_of, self.chunk)
        return total / len(asked.targets) * (label_count(batch["labels"]) / count)


@dataclass(frozen=True, slots=True)
class MiniLLM:
    """Reverse KL on the student's own answers (Gu et al. 2024, arXiv:2306.08543, equation 7 and algorithm 1).

    Answers y are drawn from p~ = ``teacher_share`` p + (1 - ``teacher_share``) q. With weights w_t = q(y_t) / p~(y_t)
    and R_t+1 the mean of log p/q over the tokens behind t (0 behind the last), both without gradient, the loss is

        mean_t  w_t * ( KL(q || p) at t  -  R_t+1 * log q(y_t) )  +  mean -log q of the batch's own text

    whose gradient is that of the equation, and of the language modelling beside it. Each sample serves one step, so the
    policy that is trained is the one that sampled, and the paper's clipping of their ratio has nothing to clip.
    """

    teacher: Callable[[], LogitTeacher]
    prompt_tokens: int
    new_tokens: int
    teacher_share: float
    plain: bool
    chunk: int = CHUNK
    name: str = "minillm"

    def __call__(self, model: Any, batch: Mapping[str, torch.Tensor], count: torch.Tensor) -> torch.Tensor:
        _check_alone(self.name)
        with _without_dropout(model):
            return self._loss(model, batch, count)

    def _loss(self, model: Any, batch: Mapping[str, torch.Tensor], count: torch.Tensor) -> torch.Tensor:
        prompts, teacher = batch["input_ids"][:, : self.prompt_tokens], self.teacher()
        ids = go_on(model, prompts, self.new_tokens, teacher, self.teacher_share)
        asked = _answers(ids, self.prompt_tokens, teacher)
        weights, rewards = self._weights_and_rewards(model, asked, teacher)

        def loss_of(logits: torch.Tensor, part: slice) -> torch.Tensor:
            ours = torch.log_softmax(logits[:, : teacher.known], -1)
            theirs = teacher.log_probabilities(asked.states[part])
            single = (ours.exp() * (ours - theirs)).sum(1)
            chosen = ours.gather(1, asked.targets[part, None]).squeeze(1)
            return (weights[part] * (single - rewards[part] * chosen)).sum()

        total = summed_by_chunks(model, ids, asked.kept, self.plain, loss_of, self.chunk)
        text = (ChunkedLoss() if self.plain else ModelLoss())(model, batch, count)
        return total / len(asked.targets) * (label_count(batch["labels"]) / count) + text

    @torch.no_grad()
    def _weights_and_rewards(
        self, model: Any, asked: _Answers, teacher: LogitTeacher
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """w_t and R_t+1 of every answered token [N], which need both models' log-probabilities of all of them."""
        ours, theirs = torch.empty(2, len(asked.targets), device=asked.ids.device)

        def loss_of(logits: torch.Tensor, part: slice) -> torch.Tensor:
            wanted = asked.targets[part, None]
            ours[part] = torch.log_softmax(logits[:, : teacher.known].detach(), -1).gather(1, wanted).squeeze(1)
            theirs[part] = teacher.log_probabilities(asked.states[part]).gather(1, wanted).squeeze(1)
            return logits.sum() * 0.0

        summed_by_chunks(model, asked.ids, asked.kept, self.plain, loss_of, self.chunk)
        return weights_and_rewards(ours, theirs, self.new_tokens, self.teacher_share)


def weights_and_rewards(
    ours: torch.Tensor, theirs: torch.Tensor, new: int, share: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """MiniLLM's w_t and R_t+1, both [N], from the student's and the teacher's log-probabilities [N] of the answered
    tokens, ``new`` a row."""
    weights = ours.exp() / (share * theirs.exp() + (1 - share) * ours.exp())
    ratios = (theirs - ours).view(-1, new)
    behind = ratios.flip(1).cumsum(1).flip(1) - ratios
    left = torch.arange(new - 1, -1, -1, device=ours.device).clamp(min=1)
    return weights, (behind / left).flatten()
