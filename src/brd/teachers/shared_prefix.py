"""The in-process teacher: any causal LM of transformers, greedy, many short prompts behind one shared prefix.

Rows are refilled as they end: when one meets its stop string another sentence joins in the next step, so a step
is always about as full as the batch. The arithmetic of a step is in ``flat_batch``; models that cannot be run
that way are run in ordinary batches by ``padded_batch``, with the same answers.
"""

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from brd import embedded, hardware
from brd.errors import BrdError, TeacherUnreachable
from brd.inference.attention import why_unsupported
from brd.inference.int8_linear import quantise
from brd.sections.teacher import Teacher as TeacherSettings
from brd.teachers import chat, padded_batch
from brd.teachers.flat_batch import FlatBatch, probe
from brd.teachers.stopping import StopRule, end_tokens
from brd.teachers.teacher import Answer

# Suffix tokens that may join in one step (always one whole row at least). Rows that start together end together;
# with a bound they spread, and the matrix products of all steps are about the same size.
JOINING_TOKENS = 256
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


@dataclass(slots=True)
class Stats:
    """Counts since the teacher was made. ``decoded`` tokens were computed, ``useful`` ones are part of an answer;
    ``read`` are the tokens of prefixes and suffixes that went through the model."""

    decoded: int = 0
    useful: int = 0
    steps: int = 0
    read: int = 0


@dataclass(slots=True)
class _Row:
    index: int
    suffix: list[int]
    new: list[int] = field(default_factory=list)


class SharedPrefix:
    """A loaded causal LM and its tokenizer as a teacher (also used to let students read).

    Prefix and suffix are tokenised apart: special tokens (BOS, where the tokenizer adds one) come before the
    prefix only. With ``chat_template`` the exemplars are turns of a conversation (``teachers.chat``). ``weights`` and
    ``dtype`` name the model in ``identity``. The model is left as it was found: its attention, its training mode.
    Answers do not depend on ``batch_size`` beyond the rounding of the dtype.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int = 64,
        chat_template: bool = False,
        weights: str = "unnamed",
        dtype: str | None = None,
    ) -> None:
        if chat_template and not tokenizer.chat_template:
            raise BrdError("teacher.chat_template: this model's tokenizer has no chat template; set it to false")
        self.model, self.tokenizer, self._batch_size = model, tokenizer, batch_size
        self._chat, self._weights = chat_template, weights
        self._dtype = dtype or hardware.dtype_name(model.dtype)
        self.context_length = _context_length(model, tokenizer)
        self.stats = Stats()
        training = model.training
        model.eval()
        self.fallback = why_unsupported(model, probe)
        self._padding = self.fallback is None or padded_batch.padding_works(model)
        model.train(training)
        if self.fallback:
            name = type(model).__name__
            print(f"{name} is run in ordinary batches, which is slower: {self.fallback}", file=sys.stderr, flush=True)

    def identity(self) -> dict[str, str]:
        return identity(self._weights, self._dtype, self._chat)

    def count_tokens(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def answer(
        self, prefix: str, suffixes: Sequence[str], *, stop: Sequence[str], max_new_tokens: int
    ) -> Iterator[tuple[int, Answer]]:
        """Yield ``(index, answer)`` as answers end, the longest prompts first. See ``teacher.Teacher``."""
        shared, rows = self._tokenise(prefix, suffixes)
        for row in rows:
            length = len(shared) + len(row.suffix)
            if length == 0:
                raise BrdError(f"prompt {row.index} is empty")
            if length + max_new_tokens > self.context_length:
                raise BrdError(
                    f"prompt {row.index} is longer than the teacher's context: {length} tokens and {max_new_tokens} "
                    f"new ones, the limit is {self.context_length}"
                )
        if shared and any(not row.suffix for row in rows):
            # A row needs a token of its own to be asked for the next one.
            for row in rows:
                row.suffix.insert(0, shared[-1])
            shared = shared[:-1]
        rows.sort(key=lambda row: -len(row.suffix))
        rule = StopRule(self.tokenizer, stop, end_tokens(self.model, self.tokenizer), max_new_tokens)
        run = self._padded if self.fallback else self._flat
        return run(shared, rows, rule, max_new_tokens) if rows else iter(())

    def _tokenise(self, prefix: str, suffixes: Sequence[str]) -> tuple[list[int], list[_Row]]:
        if self._chat:
            render = partial(self.tokenizer.apply_chat_template, add_generation_prompt=True, tokenize=False)
            prefix, turn = chat.split(prefix, render)
            suffixes = [turn(suffix) for suffix in suffixes]
        # A template writes its special tokens out.
        shared: list[int] = self.tokenizer(prefix, add_special_tokens=not self._chat)["input_ids"]
        own = self.tokenizer(list(suffixes), add_special_tokens=False)["input_ids"] if suffixes else []
        return list(shared), [_Row(index, list(tokens)) for index, tokens in enumerate(own)]

    def _flat(
        self, shared: list[int], rows: list[_Row], rule: StopRule, max_new_tokens: int
    ) -> Iterator[tuple[int, Answer]]:
        training = self.model.training
        self.model.eval()
        try:
            batch = FlatBatch(self.model, shared, min(self._batch_size, len(rows)))
            self.stats.read += len(shared)
            waiting, live = deque(rows), list[_Row]()
            while waiting or live:
                joining: list[_Row] = []
                room = JOINING_TOKENS
                while waiting and len(live) + len(joining) < self._batch_size:
                    room -= len(waiting[0].suffix)
                    if joining and room < 0:
                        break
                    joining.append(waiting.popleft())
                logits = batch.step([row.new[-1] for row in live], [row.suffix for row in joining])
                live += joining
                self.stats.steps += 1
                self.stats.decoded += len(live)
                self.stats.read += sum(len(row.suffix) for row in joining)
                ended: list[tuple[int, Answer]] = []
                # In float32: argmax of 16-bit numbers is four times slower on a CPU.
                for row, token in zip(live, logits.float().argmax(-1).tolist(), strict=True):
                    row.new.append(token)
                # From the last row on, since the last takes the number of one that ends.
                for number in reversed(range(len(live))):
                    row = live[number]
                    if ending := rule.ended(row.new):
                        batch.drop(number)
                        live[number] = live[-1]
                        live.pop()
                        ended.append((row.index, self._answer(shared, row.suffix, len(row.new), *ending)))
                yield from ended
        finally:
            self.model.train(training)

    def _padded(
        self, shared: list[int], rows: list[_Row], rule: StopRule, max_new_tokens: int
    ) -> Iterator[tuple[int, Answer]]:
        suffixes = {row.index: row.suffix for row in rows}
        prompts = [(row.index, shared + row.suffix) for row in rows]
        training = self.model.training
        self.model.eval()
        try:
            batches = padded_batch.answers(
                self.model,
                prompts,
                rule,
                batch_size=self._batch_size,
                max_new_tokens=max_new_tokens,
                padding=self._padding,
            )
            for batch, steps in batches:
                self.stats.steps += steps
                self.stats.decoded += steps * len(batch)
                self.stats.read += sum(len(shared) + len(suffixes[index]) for index, *_ in batch)
                for index, new, text, finished in batch:
                    yield index, self._answer(shared, suffixes[index], new, text, finished)
        finally:
            self.model.train(training)

    def _answer(self, shared: list[int], suffix: list[int], new: int, text: str, finished: bool) -> Answer:
        self.stats.useful += new
        return Answer(text=text, prompt_tokens=len(shared) + len(suffix), new_tokens=new, finished=finished)

    def close(self) -> None:
        """Nothing to stop; the model belongs to whoever made it."""


def _context_length(model: Any, tokenizer: Any) -> int:
    config = model.config.get_text_config(decoder=True)
    limits = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    # A tokenizer without a limit says 10**30.
    return min(int(limit) for limit in [*limits, 2**20] if limit)


def identity(weights: str, dtype: str, chat_template: bool) -> dict[str, str]:
    """All that can change an answer of this kind of teacher."""
    how = "turns" if chat_template else "false"
    return {"model": weights, "dtype": dtype, "chat_template": how, "decoding": "greedy"}


def known_identity(settings: TeacherSettings) -> dict[str, str] | None:
    """The identity of the teacher that ``load`` would give, where it can be told without fetching or loading it."""
    if settings.model not in embedded.MODELS:
        return None
    dtype = hardware.dtype_name(hardware.choose_dtype("auto")) if settings.dtype == "auto" else settings.dtype
    return identity(str(weights_here(settings.model)), dtype, settings.chat_template)


def weights_here(model: str) -> str | None:
    """How ``identity`` names the weights of an embedded model or of a local folder; None for one of the Hub."""
    if model in embedded.MODELS:
        return f"sha256:{embedded.MODELS[model].sha256}"
    files = sorted(Path(model).glob("*.safetensors"))
    return f"sha256:{','.join(map(_file_hash, files))}" if files else None


def _file_hash(path: Path) -> str:
    about = path.stat()
    return _hash_of(path, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=64)
def _hash_of(path: Path, size: int, changed: int) -> str:
    """Gigabytes take seconds to hash: once a process for a file that has not changed."""
    return embedded.file_sha256(path)


def load(settings: TeacherSettings) -> SharedPrefix:
    """Load the model that a recipe names, in the dtype it names, on the device of this machine. ``auto`` is the faster
    of bfloat16 and float32 here; where a recipe's teacher may read in int8 is for ``recipe_teacher`` to say.

    Raises BrdError when a local folder lacks something, TeacherUnreachable when the Hub does not give the model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    name = embedded.model_path(settings.model)
    folder = Path(name)
    local = folder.exists() or folder.is_absolute() or name.startswith((".", "~"))
    if local:
        _check_folder(folder)
    logging.disable_progress_bar()
    options = {"trust_remote_code": settings.trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        dtype = hardware.choose_dtype("auto" if settings.dtype == "int8" else settings.dtype)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, use_safetensors=True, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        if local:
            raise BrdError(f"{folder}: this model cannot be loaded ({reason})") from error
        raise TeacherUnreachable(f"teacher.model {name!r}: no folder here, nor on the Hub ({reason})") from error
    here = weights_here(settings.model) if local else None
    weights = here or f"{name}@{getattr(model.config, '_commit_hash', None) or 'unknown'}"
    model = model.to(hardware.device())
    if settings.dtype == "int8":
        quantise(model)
    return SharedPrefix(
        model,
        tokenizer,
        batch_size=settings.batch_size,
        chat_template=settings.chat_template,
        weights=weights,
        dtype=settings.dtype if settings.dtype == "int8" else None,
    )


def _check_folder(folder: Path) -> None:
    if folder.suffix == ".gguf":
        raise BrdError(f"{folder}: a GGUF file is read with teacher.kind llamacpp; shared_prefix takes a model folder")
    if not folder.is_dir():
        raise BrdError(f"{folder}: no such model folder (teacher.model)")
    missing = [
        what
        for what, there in {
            "config.json": (folder / "config.json").is_file(),
            "*.safetensors (the weights)": any(folder.glob("*.safetensors")),
            f"tokenizer ({', '.join(_TOKENIZER_FILES[:2])}, ...)": any(
                (folder / f).is_file() for f in _TOKENIZER_FILES
            ),
        }.items()
        if not there
    ]
    if missing:
        raise BrdError(f"{folder}: no {' and no '.join(missing)} in this model folder")
