"""The evaluation step: one arm's tasks, as figures and as one Parquet row an item."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from brd import hardware
from brd.errors import BrdError
from brd.evaluation.gold import gold_figures
from brd.evaluation.reading_skill import reading_skill
from brd.evaluation.scorecard import Request, overall, request_figures, requests, score_request
from brd.evaluation.scoring import Scorer
from brd.reading.reader import Readings
from brd.recipe import Recipe
from brd.recipe_teacher import settled
from brd.teachers import LazyTeacher
from brd.teachers.shared_prefix import SharedPrefix


def recipe_requests(recipe: Recipe) -> list[Request]:
    """What the recipe's students are tested on."""
    settings = recipe.evaluation
    return requests(settings.tasks, settings.templates, settings.shots, settings.metric, settings.limit, settings.half)


class Examinee:
    """A model that is tested: ``identity`` names its weights and dtype, and it is loaded when first needed."""

    def __init__(self, identity: str, load: Callable[[], tuple[Any, Any]]) -> None:
        self.identity = identity
        self._load = load

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """Model and tokenizer."""
        return self._load()


def student(recipe: Recipe, folder: Path, trained: str) -> Examinee:
    """A trained student in the dtype of evaluation; ``trained`` is the fingerprint of its training."""
    dtype = hardware.choose_dtype(recipe.evaluation.dtype)

    def load() -> tuple[Any, Any]:
        from brd.training.student import load_model, load_tokenizer

        model = load_model(str(folder), dtype, recipe.student.trust_remote_code)
        return model.to(hardware.device()).eval(), load_tokenizer(str(folder))

    return Examinee(f"{trained}/{hardware.dtype_name(dtype)}", load)


def teacher(recipe: Recipe, readings: Path) -> Examinee:
    """The recipe's teacher as it reads into the folder ``readings``. Raises BrdError for one whose probabilities cannot
    be had."""
    if recipe.teacher.kind != "shared_prefix":
        raise BrdError(
            f"evaluation.teacher: a teacher of kind {recipe.teacher.kind} cannot be scored, shared_prefix can"
        )
    lazy = LazyTeacher(settled(recipe, readings))

    def load() -> tuple[Any, Any]:
        engine: Any = lazy.opened
        return engine.model, engine.tokenizer

    return Examinee(json.dumps(lazy.identity(), sort_keys=True), load)


def score_tasks(
    recipe: Recipe,
    examinee: Examinee,
    folder: Path,
    progress: Callable[[str, int, int | None, str], None] | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Figures of every task of the recipe, and their macro-averages (paper: testing, blind). Item scores go into
    ``folder``; what is there, or in the recipe's cache of scores, for the same examinee is not scored again.
    ``limit`` takes fewer items than the recipe does."""
    cache = Path(recipe.evaluation.cache) if recipe.evaluation.cache else None
    scorer: Scorer | None = None

    def made() -> Scorer:
        nonlocal scorer
        scorer = scorer or Scorer(*examinee.loaded, batch_tokens=recipe.evaluation.batch_tokens)
        return scorer

    found = {}
    for request in recipe_requests(recipe):
        if limit is not None:
            request = replace(request, limit=min(limit, request.limit or limit))

        def tell(label: str, done: int) -> None:
            if progress:
                progress(label, done, None, "candidates scored")

        path = score_request(made, request, folder, examinee.identity, tell, cache)
        found[request.name] = request_figures(path, request)
    return {"tasks": found, **overall(list(found.values()))}


def reading_figures(recipe: Recipe, readings: Readings, examinee: Examinee, of_teacher: bool = False) -> dict[str, Any]:
    """How a model reads: against the teacher on held-out text (students only), and against gold where there is some,
    as it stands (``plain``) and with the few-shot prompt in front (``prompted``)."""
    settings = recipe.evaluation
    model, tokenizer = examinee.loaded
    figures: dict[str, Any] = {} if of_teacher else {**reading_skill(recipe, readings, model, tokenizer)}
    figures["dtype"] = recipe.teacher.dtype if of_teacher else hardware.dtype_name(model.dtype)
    entities, answers = (name and Path(name) for name in (settings.gold_entities, settings.gold_answers))
    if entities or answers:
        chat = of_teacher and recipe.teacher.chat_template
        engine = SharedPrefix(model, tokenizer, batch_size=recipe.teacher.batch_size, chat_template=chat)
        ways = {"prompted": True} if of_teacher or settings.reading_prompted else {}
        ways |= {} if of_teacher else {"plain": False}
        figures["gold"] = {
            way: gold_figures(
                entities or None,
                answers or None,
                settings.gold_limit,
                engine,
                readings.behaviors,
                recipe.composing.separator,
                prompted,
            )
            for way, prompted in ways.items()
        }
    return figures


def rounded(value: Any) -> Any:
    """Figures for JSON: six digits, null for what is no number."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list | tuple) else value
