"""A student as a GGUF file for llama.cpp and what is built on it: float32, Llama and Qwen2 classes.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; what llama.cpp calls keys and tensors is taken
from the package gguf, which writes the file but has no converter. Smaller files are llama.cpp's business
(``llama-quantize``).
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brd.errors import BrdError

Array = npt.NDArray[np.float32]

ARCHITECTURES = ("llama", "qwen2")
# transformers' names to llama.cpp's, of a layer's parts and of the rest.
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(folder: Path, file: Path, name: str, licence: str | None = None) -> dict[str, int]:
    """Write the student in a Hugging Face folder to ``file``; returns its ``tensors``, ``parameters`` and ``bytes``.

    One tensor is in memory at a time. Raises BrdError, and writes nothing, for a model or a tokenizer that llama.cpp
    could not be told of, or not exactly.
    """
    from gguf import GGUFWriter
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(folder)
    _check_model(folder, config)
    factors = _rope_factors(folder, config)
    tensors = list(_tensors(folder, config))
    rows = next(one.shape[0] for one in tensors if one.name == "token_embd.weight")
    vocabulary = _vocabulary(folder, AutoTokenizer.from_pretrained(folder), rows)

    writer = GGUFWriter(file, config.model_type)
    writer.add_name(name)
    if licence:
        writer.add_license(licence)
    _add_model(writer, config, rows)
    vocabulary.add_to(writer)
    if factors is not None:
        found: Array = factors
        tensors.insert(0, _Tensor("rope_freqs.weight", found.shape, lambda: found))
    for one in tensors:
        writer.add_tensor_info(one.name, one.shape, np.dtype(np.float32), 4 * int(np.prod(one.shape)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for one in tensors:
        writer.write_tensor_data(one.load())
    writer.close()
    return {
        "tensors": len(tensors),
        "parameters": sum(int(np.prod(one.shape)) for one in tensors if one.name != "rope_freqs.weight"),
        "bytes": file.stat().st_size,
    }


# The model.


def _check_model(folder: Path, config: Any) -> None:
    if config.model_type not in ARCHITECTURES:
        raise BrdError(
            f"{folder}: a model of type {config.model_type} has no GGUF export here; {' and '.join(ARCHITECTURES)} "
            "have (llama.cpp's own convert_hf_to_gguf.py knows more)"
        )
    if config.hidden_act != "silu":
        raise BrdError(f"{folder}: llama.cpp computes this class with silu only, this model has {config.hidden_act}")
    if "sliding_attention" in (getattr(config, "layer_types", None) or []):
        raise BrdError(
            f"{folder}: llama.cpp has no sliding attention for this class, which the model has in some layers"
        )


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _add_model(writer: Any, config: Any, rows: int) -> None:
    from gguf import LlamaFileType

    size = _head_size(config)
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(rows)


def _rope_factors(folder: Path, config: Any) -> Array | None:
    """By what each rotary frequency is divided (Llama 3's and linear scaling); None where it is not."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings = config.rope_parameters
    kind, partial = settings.get("rope_type", "default"), settings.get("partial_rotary_factor", 1.0)
    known = ("default", "linear", "llama3") if config.model_type == "llama" else ("default",)
    if kind not in known or partial != 1.0:
        raise BrdError(
            f"{folder}: rotary positions of kind {kind}{'' if partial == 1.0 else ' in a part of the head'} have no "
            f"GGUF export here for {config.model_type}; {', '.join(known)} have"
        )
    if kind == "default":
        return None
    scaled, _ = ROPE_INIT_FUNCTIONS[kind](config, None)
    size = _head_size(config)
    plain = settings["rope_theta"] ** -(np.arange(0, size, 2, dtype=np.float64) / size)
    factors: Array = (plain / scaled.double().numpy()).astype(np.float32)
    return factors


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor under llama.cpp's name, and how it is loaded."""

    name: str
    shape: tuple[int, ...]
    load: Callable[[], Array]


def _tensors(folder: Path, config: Any) -> Iterator[_Tensor]:
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), "pt") as opened:
            for key in opened.keys():  # noqa: SIM118 (it is no mapping)
                if key == "lm_head.weight" and config.tie_word_embeddings:
                    continue
                name, heads = _renamed(folder, key, config)
                shape = tuple(opened.get_slice(key).get_shape())
                yield _Tensor(name, shape, _loader(file, key, heads))


def _loader(file: Path, key: str, heads: int | None) -> Callable[[], Array]:
    def load() -> Array:
        from safetensors import safe_open

        with safe_open(str(file), "pt") as opened:
            values: Array = opened.get_tensor(key).float().numpy()
        return np.ascontiguousarray(values if heads is None else _interleaved(values, heads))

    return load


def _renamed(folder: Path, key: str, config: Any) -> tuple[str, int | None]:
    """llama.cpp's name of a tensor, and the number of heads whose rows are to be interleaved."""
    if key in _OUTSIDE:
        return _OUTSIDE[key], None
    part, _, kind = key.removeprefix("model.layers.").rpartition(".")
    number, _, place = part.partition(".")
    if not key.startswith("model.layers.") or place not in _LAYER or kind not in ("weight", "bias"):
        raise BrdError(f"{folder}: llama.cpp's {config.model_type} has no place for the tensor {key}")
    heads = None
    if config.model_type == "llama":
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(_LAYER[place])
    return f"blk.{number}.{_LAYER[place]}.{kind}", heads


def _interleaved(values: Array, heads: int) -> Array:
    """Rows of each head in the order of llama.cpp's Llama, whose rotary positions turn neighbours (0, 1), (2, 3), ...
    where transformers turns row n and row n + half."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


# The tokenizer.


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """A byte-level BPE tokenizer in llama.cpp's terms: ``kind`` names the rule that splits text into words."""

    kind: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special: dict[str, int]
    bos: bool
    eos: bool
    chat_template: str | None

    def add_to(self, writer: Any) -> None:
        # llama.cpp's name of the model of all byte-level BPE tokenizers.
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.kind)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        for name, number in self.special.items():
            getattr(writer, f"add_{name}_token_id")(number)
        writer.add_add_bos_token(self.bos)
        writer.add_add_eos_token(self.eos)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def _vocabulary(folder: Path, tokenizer: Any, rows: int) -> _Vocabulary:
    from gguf import TokenType

    told = json.loads(tokenizer.backend_tokenizer.to_str())
    model = told["model"]
    if model["type"] != "BPE" or model.get("byte_fallback") or model.get("continuing_subword_prefix"):
        raise BrdError(f"{folder}: its tokenizer is no byte-level BPE, the only kind that has a GGUF export here")
    kind = _splitting(told, bool(model.get("ignore_merges")))
    if kind is None:
        raise BrdError(f"{folder}: llama.cpp has no rule known here that splits text as its tokenizer does")
    tokens = [f"[PAD{number}]" for number in range(rows)]
    types = [TokenType.UNUSED] * rows
    added = told.get("added_tokens") or []
    if (highest := max([*model["vocab"].values(), *(one["id"] for one in added)])) >= rows:
        raise BrdError(f"{folder}: its tokenizer has token {highest}, its embeddings have {rows} rows")
    for token, number in model["vocab"].items():
        tokens[number], types[number] = token, TokenType.NORMAL
    for one in added:
        kind_of = TokenType.CONTROL if one["special"] else TokenType.USER_DEFINED
        tokens[one["id"]], types[one["id"]] = one["content"], kind_of
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    bare, whole = (tokenizer("a", add_special_tokens=with_)["input_ids"] for with_ in (False, True))
    at = next(n for n in range(len(whole)) if whole[n : n + len(bare)] == bare)
    before, after = whole[:at], whole[at + len(bare) :]
    if before not in ([], [special["bos"]]) or after not in ([], [special["eos"]]):
        raise BrdError(f"{folder}: its tokenizer puts more around a text than its first and last token")
    return _Vocabulary(
        kind=kind,
        tokens=tokens,
        types=[int(one) for one in types],
        merges=[" ".join(pair) for pair in pairs],
        special={name: number for name, number in special.items() if number is not None},
        bos=bool(before),
        eos=bool(after),
        chat_template=tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
    )


def _splitting(told: dict[str, Any], ignores_merges: bool) -> str | None:
    """llama.cpp's name of the rule by which a tokenizer splits text before merging; None for one not known here."""
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    normal, split = told.get("normalizer"), told.get("pre_tokenizer") or {}
    steps = split["pretokenizers"] if split.get("type") == "Sequence" else [split]
    if steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    by_words, before = steps[-1].get("use_regex", True), steps[:-1]
    if by_words and normal is None and not ignores_merges:
        if not before:
            return "gpt-2"
        return "smollm" if before == [{"type": "Digits", "individual_digits": True}] else None
    if by_words or len(before) != 1 or before[0].get("type") != "Split":
        return None
    pattern, usual = before[0]["pattern"].get("Regex"), before[0]["behavior"] == "Isolated" and not before[0]["invert"]
    # llama.cpp leaves out Qwen2's Unicode normalisation (NFC), which most text has already.
    if usual and pattern == PRETOKENIZE_REGEX and (normal is None or normal == {"type": "NFC"}) and not ignores_merges:
        return "qwen2"
    # Llama 3's rule takes digits by up to three, and knows whole words without merging them.
    if usual and pattern == PRETOKENIZE_REGEX.replace(r"\p{N}|", r"\p{N}{1,3}|") and normal is None and ignores_merges:
        return "llama-bpe"
    return None
