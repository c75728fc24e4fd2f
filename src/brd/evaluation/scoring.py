"""Zero-shot scoring of candidate answers: how probable a causal LM finds each one after the prompt.

A candidate y after a prompt x scores its mean log-probability per token, (1/n) sum_i log P(y_i | x, y_<i); the best
one is the prediction (paper: Testing). Three other metrics are read off the same pass.

Token boundary: prompt and candidate are encoded together, as the model saw text in training; the candidate's tokens
are those after the longest prefix of tokens shared with the encoding of the prompt alone, at least one. Where a
vocabulary merges across the boundary, the merged token counts as the candidate's.

``score`` packs padded rows into batches; ``score_reference`` is the plain computation that it must agree with.
"""

import hashlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, get_args

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from brd.errors import BrdError
from brd.evaluation.tasks import Item

Metric = Literal["token_mean", "sum", "character_mean", "byte_mean"]
METRICS: tuple[Metric, ...] = get_args(Metric)

# Float32 logits of one batch take at most this many numbers (256 MB), unless a single row needs more.
LOGITS_PER_BATCH = 2**26


@dataclass(frozen=True, slots=True)
class CandidateScore:
    """``logprob`` is the natural logarithm summed over ``tokens``; lengths are without the leading space."""

    text: str
    logprob: float
    tokens: int
    characters: int
    bytes: int

    def value(self, metric: Metric) -> float:
        """The score that candidates are ranked by; higher is better.

        ``sum`` and ``character_mean`` are what lm-evaluation-harness calls acc and acc_norm.
        """
        lengths = {"token_mean": self.tokens, "sum": 1, "character_mean": self.characters, "byte_mean": self.bytes}
        return self.logprob / lengths[metric]


@dataclass(frozen=True, slots=True)
class ItemScores:
    """An item's candidates in their order; ``truncated`` is the number of context tokens cut from the left."""

    id: str
    gold: int
    candidates: tuple[CandidateScore, ...]
    truncated: int

    def prediction(self, metric: Metric = "token_mean") -> int:
        """Index of the best candidate.

        An exact tie goes to the candidate with the smallest SHA-256 of item id and text: the same in every run, and
        without favour to a position (in some tasks the right answer always stands first).
        """

        def rank(index: int) -> tuple[float, bytes]:
            candidate = self.candidates[index]
            return -candidate.value(metric), hashlib.sha256(f"{self.id}\n{candidate.text}".encode()).digest()

        return min(range(len(self.candidates)), key=rank)


@dataclass(frozen=True, slots=True)
class _Encoded:
    """Token ids of context and candidate; the candidate's are ``tokens[start:]``."""

    tokens: list[int]
    start: int


@dataclass(frozen=True, slots=True)
class _Row:
    """One sequence to run. Each read is (candidate, position that predicts its first token, its tokens)."""

    item: int
    tokens: list[int]
    reads: list[tuple[int, int, list[int]]]

    @property
    def first(self) -> int:
        return min(position for _, position, _ in self.reads)

    @property
    def positions(self) -> int:
        return len(self.tokens) - self.first


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Iterable[Item],
    *,
    batch_tokens: int = 1024,
    progress: Callable[[int, int], None] | None = None,
) -> list[ItemScores]:
    """Scores of all candidates of all items, in the items' order.

    Rows are sorted by length, right-padded and packed into batches of at most ``batch_tokens`` padded tokens; a
    longer row goes alone. On a CPU, 512 to 1024 is fastest: what a layer works on then stays in the cache.
    Candidates whose input is the same, as with one-token answers, or the beginning of another's share one row. The
    LM head runs only on the positions that predict candidates; the softmax is in float32. A context longer than the
    model's window is cut from the left, by as much for all candidates of an item.
    ``progress`` is called with the rows done and the rows in all.

    Raises BrdError naming the item for a candidate longer than the window and for NaN or infinite logits.
    """
    if batch_tokens < 1:
        raise BrdError(f"batch_tokens should be at least 1 (got {batch_tokens})")
    listed = list(items)
    rows: list[_Row] = []
    truncated: list[int] = []
    for index, (encoded, cut) in enumerate(_encode(tokenizer, listed, _window(model))):
        rows += _rows(index, encoded)
        truncated.append(cut)
    rows.sort(key=lambda row: len(row.tokens), reverse=True)
    found: list[dict[int, tuple[float, int]]] = [{} for _ in listed]
    done = 0
    with _evaluating(model):
        for batch in _batches(rows, batch_tokens, model.config.get_text_config().vocab_size):
            for row, values in zip(batch, _score_batch(model, batch), strict=True):
                for (candidate, _, targets), value in zip(row.reads, values, strict=True):
                    _check_finite(listed[row.item], candidate, value)
                    found[row.item][candidate] = (value, len(targets))
            done += len(batch)
            if progress is not None:
                progress(done, len(rows))
    return [_collect(item, by, cut) for item, by, cut in zip(listed, found, truncated, strict=True)]


def score_reference(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, item: Item) -> ItemScores:
    """The same scores the plain way: one candidate at a time, whole sequence, all logits, no padding, no sharing."""
    ((encoded, cut),) = _encode(tokenizer, [item], _window(model))
    found: dict[int, tuple[float, int]] = {}
    with _evaluating(model):
        for index, candidate in enumerate(encoded):
            tokens = torch.tensor([candidate.tokens], device=model.device)
            logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
            logprobs = logits[0].float().log_softmax(-1).gather(1, tokens[0, 1:, None])[candidate.start - 1 :]
            found[index] = (float(logprobs.sum()), len(logprobs))
            _check_finite(item, index, found[index][0])
    return _collect(item, found, cut)


def _collect(item: Item, found: dict[int, tuple[float, int]], cut: int) -> ItemScores:
    candidates = []
    for index, text in enumerate(item.candidates):
        bare = text.removeprefix(" ")
        candidates.append(CandidateScore(text, *found[index], len(bare), len(bare.encode())))
    return ItemScores(item.id, item.gold, tuple(candidates), cut)


def _check_finite(item: Item, candidate: int, value: float) -> None:
    if not math.isfinite(value):
        raise BrdError(
            f"item {item.id}, candidate {candidate}: its log-probability is {value}; the model's weights are broken, "
            f"or its dtype overflows (try float32)"
        )


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without gradients and dropout; the model is left in the mode that it came in."""
    training = model.training
    model.train(False)
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def _window(model: PreTrainedModel) -> int | None:
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return window if isinstance(window, int) and window > 0 else None


def _encode(
    tokenizer: PreTrainedTokenizerBase, items: list[Item], window: int | None
) -> Iterator[tuple[list[_Encoded], int]]:
    """For each item the token ids of its candidates, and by how many tokens the context was cut to fit ``window``."""
    lead, start_token = _lead(tokenizer)
    for item in items:
        texts = [item.context, *(item.context + candidate for candidate in item.candidates)]
        # Not verbose: tokenizers warn of texts longer than the window, which are cut below.
        context, *joint = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        shared = [_shared(context, tokens) for tokens in joint]
        front = lead
        if not front and min(shared) == 0:
            if start_token is None:
                raise BrdError(f"item {item.id}: no token precedes a candidate, and the tokenizer has no BOS or EOS")
            front = [start_token]
        cut = max(0, len(front) + max(map(len, joint)) - 1 - window) if window else 0
        encoded = []
        for index, (tokens, n) in enumerate(zip(joint, shared, strict=True)):
            if len(front) + n - cut < 1 or n < cut:
                raise BrdError(
                    f"item {item.id}: its candidates are too long for the model's window of {window} tokens "
                    f"(candidate {index} has {len(tokens) - n})"
                )
            encoded.append(_Encoded(front + tokens[cut:], len(front) + n - cut))
        yield encoded, cut


def _shared(context: list[int], joint: list[int]) -> int:
    """Number of tokens of ``joint`` that belong to the context: the longest common prefix, leaving at least one."""
    common = next((n for n, (a, b) in enumerate(zip(context, joint, strict=False)) if a != b), len(context))
    return min(common, len(joint) - 1)


def _lead(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int | None]:
    """The special tokens that the tokenizer puts before a text, and the one for texts that need a token before them.

    Special tokens after a text (some tokenizers add EOS) are left out: an answer need not be the end.
    """
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    n = next((n for n in range(len(full)) if full[n : n + len(plain)] == plain), 0)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return full[:n], start


def _rows(item: int, encoded: list[_Encoded]) -> list[_Row]:
    """The sequences to run for one item: a candidate's input that begins another's is read off that one."""
    rows: list[_Row] = []
    for index in sorted(range(len(encoded)), key=lambda i: -len(encoded[i].tokens)):
        fed = encoded[index].tokens[:-1]
        row = next((row for row in rows if row.tokens[: len(fed)] == fed), None)
        if row is None:
            row = _Row(item, fed, [])
            rows.append(row)
        row.reads.append((index, encoded[index].start - 1, encoded[index].tokens[encoded[index].start :]))
    return rows


def _batches(rows: list[_Row], batch_tokens: int, vocabulary: int) -> Iterator[list[_Row]]:
    """Runs of ``rows`` (longest first) within the limits on padded tokens and on logits."""
    batch: list[_Row] = []
    positions = 0
    for row in rows:
        positions += row.positions
        full = batch and (
            (len(batch) + 1) * len(batch[0].tokens) > batch_tokens or positions * vocabulary > LOGITS_PER_BATCH
        )
        if full:
            yield batch
            batch, positions = [], row.positions
        batch.append(row)
    if batch:
        yield batch


def _score_batch(model: PreTrainedModel, batch: list[_Row]) -> list[list[float]]:
    """Summed log-probability of each read of each row."""
    logits = _logits(model, batch)
    at: list[int] = []
    targets: list[int] = []
    offset = 0
    for row in batch:
        for _, position, tokens in row.reads:
            begin = offset + position - row.first
            at += range(begin, begin + len(tokens))
            targets += tokens
        offset += row.positions
    where = torch.tensor(at, device=logits.device)
    logprobs = logits[where, torch.tensor(targets, device=logits.device)] - logits.logsumexp(-1)[where]
    values = iter(logprobs.tolist())
    return [[math.fsum(islice(values, len(tokens))) for _, _, tokens in row.reads] for row in batch]


def _logits(model: PreTrainedModel, batch: list[_Row]) -> torch.Tensor:
    """Float32 logits, ``(sum of row.positions, vocabulary)``, at each row's positions from its first read to its end.

    Padding stands on the right with position ids of its own, so that models with absolute positions see each token
    where it would be unpadded.
    """
    width = len(batch[0].tokens)
    lengths = torch.tensor([len(row.tokens) for row in batch])
    # Padding is masked, so any id does; 0 exists in every vocabulary, a padding token does not.
    ids = torch.tensor([row.tokens + [0] * (width - len(row.tokens)) for row in batch])
    columns = torch.arange(width).expand(len(batch), -1)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": (columns < lengths[:, None]).long()}
    # OPT and others that take no position ids derive the same ones from the mask or count from the left.
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = columns
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    rows = torch.tensor([n for n, row in enumerate(batch) for _ in range(row.positions)], device=model.device)
    kept = [c for row in batch for c in range(row.first, len(row.tokens))]
    cols = torch.tensor(kept, device=model.device)

    # The head's input is cut, not its output: the logits of all positions would be the largest tensor by far, and
    # what a model does to its logits after the head (scaling, soft capping) still happens.
    def select(_: torch.nn.Module, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (arguments[0][rows, cols],)

    network: Any = model
    handle = network.get_output_embeddings().register_forward_pre_hook(select)
    try:
        logits: torch.Tensor = network(**inputs, use_cache=False).logits
    finally:
        handle.remove()
    return logits.float()
