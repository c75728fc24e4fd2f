"""The teacher whose distributions a student is trained towards: a causal LM that knows the student's tokens."""

import functools
from pathlib import Path
from typing import Any

import torch

from brd import embedded, hardware
from brd.errors import BrdError
from brd.recipe import Recipe, changed
from brd.training.checks import check_window
from brd.training.documents import Apart, what_keeps_apart
from brd.training.loss import can_be_chunked
from brd.training.student import load_config, load_model, load_tokenizer

# Tokenised by both, to tell apart tokenizers of one vocabulary and different merges.
_SAMPLE = 'In 1987, Dr. Ana O\'Neill re-read «Über Größe» -- 3.5 times;\n\n\tthen she wrote:  "naïve?" 東京 🙂'
_EXAMPLE_TOKENS = 16


class LogitTeacher:
    """A loaded causal LM, asked for its distributions over the first ``known`` ids: those that the tokenizer has.

    It works in its own dtype, whatever autocast the student is trained under. Rows of the embedding beyond those ids
    (vocabularies are padded to round numbers) are left out of the softmax. Logits are taken in float32 from the last
    hidden state where the output embedding is a plain product, since 16 bits move a logit of 20 in steps of 0.125.
    """

    def __init__(self, model: Any, known: int) -> None:
        self.model = model.eval().requires_grad_(False)
        self.known = known
        with torch.no_grad():
            self._plain = can_be_chunked(model, torch.arange(min(_EXAMPLE_TOKENS, known))[None])
        self._table = model.get_output_embeddings().weight[:known].float() if self._plain else None

    @functools.cached_property
    def apart(self) -> Apart:
        """What keeps the documents of a row apart in this model. Raises BrdError when nothing does."""
        return what_keeps_apart(self.model, "the teacher, a")

    @torch.no_grad()
    def states(self, ids: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """What ``log_probabilities`` turns into distributions, for every position of ``ids`` [rows, tokens]: [rows,
        tokens, H], the last hidden states (of a model whose logits are no plain product: the logits). Further
        ``inputs`` are the model's."""
        with torch.autocast(ids.device.type, enabled=False):
            if self._plain:
                hidden: torch.Tensor = self.model.get_decoder()(
                    input_ids=ids, **inputs, use_cache=False
                ).last_hidden_state
                return hidden
            logits: torch.Tensor = self.model(input_ids=ids, **inputs, use_cache=False).logits[..., : self.known]
            return logits

    @torch.no_grad()
    def log_probabilities(self, states: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
        """Log-probabilities [N, known] in float32 of some ``states`` [N, H]."""
        with torch.autocast(states.device.type, enabled=False):
            logits = states.float() if self._table is None else states.float() @ self._table.T
            return torch.log_softmax(logits / temperature, -1)


def identity(recipe: Recipe) -> dict[str, str]:
    """All of the teacher that can change its distributions, told without loading it."""
    name = _name(recipe)
    dtype = hardware.dtype_name(hardware.choose_dtype(recipe.distillation.teacher_dtype))
    return {"model": _weights(name, recipe.teacher.trust_remote_code), "dtype": dtype}


def load_logit_teacher(recipe: Recipe, tokenizer: Any) -> LogitTeacher:
    """The teacher of a recipe on this machine's device; ``tokenizer`` is the student's.

    Raises BrdError where it cannot be loaded, or has another tokenizer.
    """
    check_teacher(recipe, tokenizer)
    name, dtype = _name(recipe), hardware.choose_dtype(recipe.distillation.teacher_dtype)
    model = load_model(name, dtype, recipe.teacher.trust_remote_code)
    known, rows = len(tokenizer), model.get_output_embeddings().weight.shape[0]
    if rows < known:
        raise BrdError(f"{name}: has {rows} rows of output embedding for a tokenizer of {known} tokens")
    return LogitTeacher(model.to(hardware.device()), known)


def check_teacher(recipe: Recipe, tokenizer: Any) -> None:
    """BrdError for a teacher that has other tokens than the student, or could not read the recipe's rows; its weights
    are not loaded for it."""
    name, trusted = _name(recipe), recipe.teacher.trust_remote_code
    check_same_tokens(load_tokenizer(name, trusted), tokenizer, name)
    check_window(load_config(name, trusted), recipe.composing.row_tokens, f"the teacher's ({name})")


def check_same_tokens(teacher: Any, student: Any, name: str) -> None:
    """BrdError unless both tokenizers mean the same by every id: the teacher reads what the student's wrote.

    It is the tokenizers that are compared. Embeddings may have different numbers of rows (Qwen2.5 pads its sizes
    differently): an id beyond the vocabulary never occurs in a text.
    """
    theirs, ours = teacher.get_vocab(), student.get_vocab()
    different = [token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)]
    how = f"{len(different)} tokens have another id or none, such as {min(different)[:40]!r}" if different else ""
    if not how and teacher(_SAMPLE)["input_ids"] != student(_SAMPLE)["input_ids"]:
        how = "the vocabulary is the same, but a text is split otherwise"
    if how:
        raise BrdError(
            f"distillation: the teacher {name} has another tokenizer than the student ({how}), so its distributions "
            f"are over other tokens; take a teacher of the student's family, in distillation.teacher_model (and leave "
            f"composing.separator_as_token out, which gives the student a token of its own)"
        )


class LaterTeacher:
    """A recipe's teacher, loaded when it is first called for; it is pickled without."""

    def __init__(self, recipe: Recipe, tokenizer: Any) -> None:
        # What is fast is measured, and must be one answer in all processes that load it.
        dtype = hardware.dtype_name(hardware.choose_dtype(recipe.distillation.teacher_dtype))
        self._recipe, self._tokenizer = changed(recipe, {"distillation.teacher_dtype": dtype}), tokenizer
        self._loaded: LogitTeacher | None = None

    def __call__(self) -> LogitTeacher:
        if self._loaded is None:
            # Whenever it is loaded, what training draws at random stays what it would have been.
            with torch.random.fork_rng():
                self._loaded = load_logit_teacher(self._recipe, self._tokenizer)
        return self._loaded

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}


def _name(recipe: Recipe) -> str:
    return recipe.distillation.teacher_model or recipe.teacher.model


def _weights(name: str, trust_remote_code: bool) -> str:
    if name in embedded.MODELS:
        return f"sha256:{embedded.MODELS[name].sha256}"
    if Path(name).is_dir():
        return "sha256:" + ",".join(embedded.file_sha256(path) for path in sorted(Path(name).glob("*.safetensors")))
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise BrdError(f"distillation: the teacher {name!r} is no folder here, nor on the Hub ({error})") from None
    return f"{name}@{getattr(config, '_commit_hash', None) or 'unknown'}"
