"""The student: any causal LM, whole or cut to chosen layers, with its tokenizer."""

from pathlib import Path
from typing import Any

import torch

from brd.embedded import model_path
from brd.errors import BrdError
from brd.recipe import Recipe
from brd.training.checks import check_embedding
from brd.training.layers import keep_layers, stack


def load_tokenizer(name: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model; BrdError when there is none or it lacks an end-of-sequence token."""
    from transformers import AutoTokenizer

    path = _check_folder(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise BrdError(
            f"{name}: no tokenizer could be loaded (a model folder needs tokenizer.json or the like): {_first(error)}"
        ) from None
    # transformers makes up an empty tokenizer for some folders that have none.
    if not tokenizer.is_fast or len(tokenizer) < 3:
        raise BrdError(
            f"{name}: the model folder has no usable tokenizer (tokenizer.json); save one beside the weights"
        )
    if tokenizer.eos_token_id is None:
        raise BrdError(f"{name}: the tokenizer has no end-of-sequence token, which ends every lesson")
    return tokenizer


def student_tokenizer(recipe: Recipe) -> Any:
    """The student's tokenizer, with the separator as a new token where the recipe says so."""
    tokenizer = load_tokenizer(recipe.student.model, recipe.student.trust_remote_code)
    if recipe.composing.separator_as_token:
        tokenizer.add_special_tokens({"extra_special_tokens": [recipe.composing.separator]})
    return tokenizer


def load_config(name: str, trust_remote_code: bool = False) -> Any:
    """The config of a causal LM; BrdError when there is none."""
    from transformers import AutoConfig

    path = _check_folder(name)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise _not_loaded(name, error) from None


def load_model(name: str, dtype: torch.dtype, trust_remote_code: bool = False, dropout: float | None = None) -> Any:
    """A causal LM in ``dtype`` (never the file's own by accident), from safetensors only; all dropout rates of its
    config replaced by ``dropout`` unless that is None."""
    from transformers import AutoModelForCausalLM

    path, config = _check_folder(name), load_config(name, trust_remote_code)
    try:
        rates = [key for key in config.to_dict() if key.endswith(("dropout", "pdrop"))] if dropout is not None else []
        for key in rates:
            setattr(config, key, dropout)
        return AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=dtype, trust_remote_code=trust_remote_code, use_safetensors=True
        )
    except Exception as error:
        raise _not_loaded(name, error) from None


def load_student(recipe: Recipe, tokenizer: Any, start: Path | None = None) -> Any:
    """The student in float32 as every arm starts from it, the same for all arms of a recipe: what the recipe names and
    how it cuts it, or the model in the folder ``start`` as it is (one that was healed).

    Its dropout is that of its own config (XGLM and GPT-2: 0.1 in training; Llama and Qwen: none) unless the recipe says
    otherwise; the paper says nothing of it. A recipe with ``student.keep_layers`` is first to be ``layers.cut_to``.
    """
    settings = recipe.student
    if start is not None:
        return load_model(str(start.resolve()), torch.float32, settings.trust_remote_code, settings.dropout)
    model = load_whole(recipe)
    if settings.keep_layers is not None:
        raise ValueError("student.keep_layers: which layers these are has not been measured")
    if settings.layers is not None:
        keep_layers(model, settings.layers)
    known = model.get_input_embeddings().num_embeddings
    check_embedding(recipe, tokenizer, known)
    if len(tokenizer) > known:
        torch.manual_seed(recipe.seed)
        model.resize_token_embeddings(len(tokenizer))
    return model


def load_whole(recipe: Recipe) -> Any:
    """The model that the recipe names, in float32, with all its layers."""
    settings = recipe.student
    return load_model(settings.model, torch.float32, settings.trust_remote_code, settings.dropout)


def compile_layers(model: Any) -> None:
    """Have torch compile a model's transformer layers, one for all since they are alike, when they are first run."""
    try:
        torch.compile(torch.sin)(torch.zeros(8, device=model.device))
    except Exception as error:
        raise BrdError(
            f"training.compile: torch cannot compile here ({_first(error)}); install a C++ compiler (Debian: g++) "
            f"or leave training.compile out"
        ) from None
    found = stack(model)
    if found is None:
        raise BrdError(f"training.compile: cannot tell which layers a {type(model).__name__} consists of")
    for layer in found[2]:
        layer.compile()


def _check_folder(name: str) -> str:
    path = model_path(name)
    local = Path(path)
    if (local.is_absolute() or name.startswith(".")) and not local.is_dir():
        raise BrdError(f"{name}: no such model folder")
    if local.is_dir() and not (local / "config.json").exists():
        raise BrdError(f"{name}: the folder has no config.json, so it is no Hugging Face model")
    return path


def _not_loaded(name: str, error: Exception) -> BrdError:
    return BrdError(f"{name}: not a causal language model that can be loaded: {_first(error)}")


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
