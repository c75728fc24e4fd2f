"""The teacher of a recipe with its dtype decided, which hangs on more than the section ``teacher``: on the prompts, on
what was checked, and on how the run began."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from brd.recipe import Recipe
from brd.run import read_json
from brd.sections.teacher import Teacher


def settled(recipe: Recipe, readings: Path | None = None, say: Callable[[str], None] | None = None) -> Teacher:
    """``recipe.teacher``; an in-process teacher's dtype ``auto`` as what is taken.

    That is the dtype in which the readings in the folder ``readings`` were begun; else int8 where it is faster here and
    was checked (`brd check-int8`); else it stays ``auto``, which ``shared_prefix`` takes for the faster of bfloat16 and
    float32. Nothing is fetched or loaded. ``say`` is told where a new run would be read in another dtype.
    """
    if not _open(recipe.teacher):
        return recipe.teacher
    dtype = begun_in(recipe.teacher, readings) if readings else None
    if dtype is None:
        dtype = now(recipe)
    elif say:
        from brd.teachers import int8_record

        other = now(recipe) or int8_record.full_dtype()
        if other != dtype:
            say(f"  the teacher goes on in {dtype}, as this run began; a new run would be read in {other} here")
    return recipe.teacher if dtype is None else recipe.teacher.model_copy(update={"dtype": dtype})


def now(recipe: Recipe) -> str | None:
    """int8 where ``auto`` takes it for a new run; None elsewhere."""
    from brd import remembered
    from brd.teachers import int8_record

    # Without any check neither weights are hashed nor prompts made.
    if not _open(recipe.teacher) or not remembered.anything(int8_record.KIND):
        return None
    weights = _weights(recipe.teacher)
    if weights is None:
        return None
    from brd.reading.behavior import behaviors_of
    from brd.reading.naming import Names

    names = Names(recipe, behaviors_of(recipe.reading), "")
    prompts = [(name.prompt_hash, name.max_new_tokens) for name in names]
    return "int8" if int8_record.may_read(weights, recipe.teacher.chat_template, prompts) else None


def begun_in(settings: Teacher, readings: Path) -> str | None:
    """The dtype in which the same weights have begun to read into a folder; None where they have not.

    Readings of one run would else be split over two dtypes by a check that was made in between, or by another machine.
    """
    from brd import hardware
    from brd.teachers.shared_prefix import identity, weights_here

    found: Any = read_json(readings / "teacher.json")
    if not isinstance(found, Mapping) or found.get("dtype") not in (*hardware.DTYPES, "int8"):
        return None
    model, dtype = str(found.get("model")), str(found["dtype"])
    same = weights_here(settings.model)
    if same is None and model.startswith(f"{settings.model}@"):
        # On the Hub; whether the commit is still the same is not known before it is loaded.
        same = model
    if same is None or {**identity(same, dtype, settings.chat_template), "hash": found.get("hash")} != found:
        return None
    return None if dtype == "int8" and hardware.device().type != "cpu" else dtype


def _open(settings: Teacher) -> bool:
    return settings.kind == "shared_prefix" and settings.dtype == "auto"


def _weights(settings: Teacher) -> str | None:
    from brd.teachers.shared_prefix import weights_here

    if (here := weights_here(settings.model)) is not None:
        return here
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(settings.model, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError):
        # Said by ``shared_prefix.load``.
        return None
    commit = getattr(config, "_commit_hash", None)
    return f"{settings.model}@{commit}" if commit else None
