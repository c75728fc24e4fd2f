"""What can be told of a training before anything is read, from configs, tokenizers and installed packages alone."""

from importlib.util import find_spec
from typing import Any

from brd.errors import BrdError
from brd.recipe import Recipe


def check_reporter(name: str) -> None:
    """BrdError where the package that losses are to be reported to is not there."""
    if name != "none" and not find_spec(name):
        raise BrdError(f"training.report_to: {name} is not installed; `pip install {name}`, or set it to none")


def check_window(config: Any, row_tokens: int, whose: str = "the student's") -> None:
    """BrdError for rows that are longer than a model of this config can take."""
    window = getattr(config, "max_position_embeddings", None)
    if window and row_tokens > window:
        raise BrdError(f"composing.row_tokens: {row_tokens} is more than {whose} window of {window} tokens")


def check_embedding(recipe: Recipe, tokenizer: Any, embedded: int) -> None:
    """BrdError for a student whose tokenizer has more tokens than it has embeddings for."""
    own = len(tokenizer) - recipe.composing.separator_as_token
    if own > embedded:
        raise BrdError(
            f"student.model: {recipe.student.model} has a tokenizer of {own} tokens and an embedding of {embedded}; "
            "save the model with the tokenizer that it was trained with"
        )


def check_student(recipe: Recipe) -> None:
    """BrdError for a student that is not there, or could not be trained on the recipe's rows."""
    from brd.training.student import load_config, student_tokenizer

    tokenizer = student_tokenizer(recipe)
    config = load_config(recipe.student.model, recipe.student.trust_remote_code)
    check_window(config, recipe.composing.row_tokens)
    check_embedding(recipe, tokenizer, getattr(config, "vocab_size", None) or len(tokenizer))
