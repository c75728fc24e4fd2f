"""Distillation on what the student writes itself: GKD and MiniLLM, each after its paper (docs/distillation.md).

A row's first tokens are the prompt, and what is written is gone on with for a fixed number of tokens: rows are a stream
of documents ended by EOS, which is a token like any other there. So all answers are equally long, and none is padded.
Dropout is off throughout, so that what is trained is what has sampled.

What is drawn at random for a row hangs on the seed and the row's place in the order of the training alone, so it is the
same whichever process draws it, beside whatever other rows, and after any interruption. And a token is drawn by the
race of exponential variables that torch.multinomial holds, whose winner is another one only where two are as good as
level: rounding, which differs with the rows of a batch, shifts all bounds of a cumulative distribution instead.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from brd.training.distillation.chunks import CHUNK, summed_by_chunks
from brd.training.distillation.teacher import LogitTeacher
from brd.training.loss import IGNORED
from brd.training.objective import ChunkedLoss, ModelLoss

# No wait is shorter: 0 divided by 0 would win.
_LEAST = torch.finfo(torch.float32).tiny


@contextmanager
def _without_dropout(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@dataclass(frozen=True, slots=True)
class Draws:
    """What a row brings along to be gone on with, by its place in the order of the training: the ``sampling_seed`` of
    its answer, and whether its whole step is ``on_policy``, which it is with that probability."""

    seed: int
    rows_per_step: int
    on_policy: float = 1.0

    def beside(self, row: int, place: int) -> dict[str, torch.Tensor]:
        number = np.random.SeedSequence([self.seed, place, 0]).generate_state(1, np.uint64)[0]
        coin = np.random.default_rng([self.seed, place // self.rows_per_step, 1]).random()
        # torch holds whole numbers of 63 bits and a sign.
        return {"sampling_seed": torch.tensor(int(number >> 1)), "on_policy": torch.tensor(coin < self.on_policy)}


@torch.no_grad()
def go_on(
    student: Any, prompts: torch.Tensor, new: int, teacher: LogitTeacher, seeds: torch.Tensor, share: float = 0.0
) -> torch.Tensor:
    """``prompts`` [rows, tokens] with ``new`` tokens behind each, [rows, tokens + new].

    Each is drawn from ``share`` p + (1 - ``share``) q, p the teacher's and q the student's distribution over the
    teacher's ``known`` ids (MiniLLM's teacher-mixed sampling; GKD's without a share), by a generator of the row's own
    with the seed that ``seeds`` [rows] has for it.
    """
    ids, past, theirs = prompts, None, None
    generators = [torch.Generator(ids.device).manual_seed(seed) for seed in seeds.tolist()]
    waits = torch.empty(len(ids), teacher.known, device=ids.device)
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
        for row, generator in zip(waits, generators, strict=True):
            row.exponential_(generator=generator)
        ids = torch.cat([ids, (mixed / waits.clamp_(min=_LEAST)).argmax(1, keepdim=True)], 1)
    return ids


@dataclass(frozen=True, slots=True)
class _Answers:
    """What stands behind prompts: ``ids`` [rows, tokens], the positions that predict it, the tokens predicted [N], the
    teacher's states there [N, H], and the share [N] that each has in the loss of the step: of its row's, which is that
    of the labels in the row's text, as much as the others."""

    ids: torch.Tensor
    kept: torch.Tensor
    targets: torch.Tensor
    states: torch.Tensor
    shares: torch.Tensor


def _answers(
    ids: torch.Tensor, asked: torch.Tensor, teacher: LogitTeacher, labels: torch.Tensor, count: torch.Tensor
) -> _Answers:
    """Of the tokens at the ends of ``ids`` those that ``asked`` [rows, tokens behind the prompt] is True for. The rows'
    text has ``labels``, the whole step ``count`` of them."""
    kept = torch.zeros_like(ids, dtype=torch.bool)
    kept[:, -asked.shape[1] - 1 : -1] = asked
    shares = labels[:, 1:].ne(IGNORED).sum(1) / count / kept.sum(1).clamp(min=1)
    return _Answers(ids, kept, ids.roll(-1, 1)[kept], teacher.states(ids)[kept], shares[kept.nonzero()[:, 0]])


def _gone_on_with(labels: torch.Tensor, prompt: int, new: int) -> torch.Tensor:
    """Which of ``new`` tokens behind prompts are answers, [rows, new]: none where a prompt ends in padding."""
    return labels[:, prompt - 1 : prompt].ne(IGNORED).expand(-1, new)


def _trls_divergence() -> Callable[..., Any]:
    with warnings.catch_warnings():
        # That it is experimental is why its version is pinned and its divergence tested.
        warnings.simplefilter("ignore")
        from trl.experimental.gkd import GKDTrainer
    found: Callable[..., Any] = GKDTrainer.generalized_jsd_loss
    return found


@dataclass(frozen=True, slots=True)
class GKD:
    """On-policy distillation (Agarwal et al. 2024, arXiv:2306.13649), its divergence by TRL.

    The rows of a step are gone on with by the student where they bring along that they are (``Draws``), else taken as
    the text has them; the loss is the generalised Jensen-Shannon divergence with ``beta`` (0: KL(teacher || student),
    1: KL(student || teacher)) at the tokens behind the prompt, a mean over each row and then over rows.
    """

    teacher: Callable[[], LogitTeacher]
    prompt_tokens: int
    new_tokens: int
    beta: float
    plain: bool
    chunk: int = CHUNK
    name: str = "gkd"

    def __call__(self, model: Any, batch: Mapping[str, torch.Tensor], count: torch.Tensor) -> torch.Tensor:
        with _without_dropout(model):
            return self._loss(model, batch, count)

    def _loss(self, model: Any, batch: Mapping[str, torch.Tensor], count: torch.Tensor) -> torch.Tensor:
        ids, labels, prompt, teacher = batch["input_ids"], batch["labels"], self.prompt_tokens, self.teacher()
        wanted = labels[:, prompt:].ne(IGNORED)
        if bool(batch["on_policy"][0]):
            ids = go_on(model, ids[:, :prompt], self.new_tokens, teacher, batch["sampling_seed"])
            wanted = _gone_on_with(labels, prompt, self.new_tokens)
        asked, divergence = _answers(ids, wanted, teacher, labels, count), _trls_divergence()

        def loss_of(logits: torch.Tensor, part: slice) -> torch.Tensor:
            wanted, known = teacher.log_probabilities(asked.states[part]), logits[:, : teacher.known]
            found: torch.Tensor = divergence(known, wanted, beta=self.beta, reduction="none")
            return (asked.shares[part] * found.sum(1)).sum()

        return summed_by_chunks(model, ids, asked.kept, self.plain, loss_of, self.chunk)


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
        with _without_dropout(model):
            return self._loss(model, batch, count)

    def _loss(self, model: Any, batch: Mapping[str, torch.Tensor], count: torch.Tensor) -> torch.Tensor:
        labels, prompt, new, teacher = batch["labels"], self.prompt_tokens, self.new_tokens, self.teacher()
        prompts = batch["input_ids"][:, :prompt]
        ids = go_on(model, prompts, new, teacher, batch["sampling_seed"], self.teacher_share)
        asked = _answers(ids, _gone_on_with(labels, prompt, new), teacher, labels, count)
        weights, rewards = self._weights_and_rewards(model, asked, teacher)

        def loss_of(logits: torch.Tensor, part: slice) -> torch.Tensor:
            ours = torch.log_softmax(logits[:, : teacher.known], -1)
            theirs = teacher.log_probabilities(asked.states[part])
            single = (ours.exp() * (ours - theirs)).sum(1)
            chosen = ours.gather(1, asked.targets[part, None]).squeeze(1)
            return (asked.shares[part] * weights[part] * (single - rewards[part] * chosen)).sum()

        total = summed_by_chunks(model, ids, asked.kept, self.plain, loss_of, self.chunk)
        text = {"input_ids": batch["input_ids"], "labels": labels}
        return total + (ChunkedLoss() if self.plain else ModelLoss())(model, text, count)

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
