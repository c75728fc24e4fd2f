"""The step from readings to token files: one for each arm, and what healing and the choice of layers rest on."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brd.errors import BrdError
from brd.experiment import REFERENCE, TASK_DATA, Data
from brd.recipe import Recipe
from brd.recipe_corpus import open_corpus
from brd.summary import composed_lines

if TYPE_CHECKING:
    from brd.pipeline import Pipeline


def compose(pipeline: "Pipeline") -> None:
    """Readings to token files."""
    pipeline.needs("read", ["read"])
    if pipeline.recipe.student.keep_layers is not None:
        _compose_layers(pipeline)
    if pipeline.recipe.healing:
        _compose_healing(pipeline)
    if not pipeline.composed:
        return
    readings: Any = None
    for arm in pipeline.composed:
        folder = pipeline.run.path / "composed" / arm

        def work(arm: str = arm, folder: Path = folder) -> dict[str, Any]:
            nonlocal readings
            from brd.composing.compose import compose, steps_for
            from brd.reading.reader import Readings
            from brd.training.student import student_tokenizer

            readings = readings or Readings(pipeline.recipe, pipeline.readings_folder)
            recipe, data = pipeline.arm_recipe(arm), pipeline.about(arm).data
            rows, fill = 0, 1.0
            if arm != REFERENCE and recipe.composing.packing == "best_fit":
                fill = reference_fill(pipeline)
            if data != "lessons":
                # As many as there are lessons, so that a seed draws its share of them as it does of lessons.
                rows = max(
                    reference_rows(pipeline),
                    steps_for(reference_rows(pipeline), recipe) * recipe.training.rows_per_step,
                )
            more_of = _more_of(pipeline, recipe, data)
            with open_corpus(recipe, folder.with_name(f"{arm}.dropped.parquet")) as corpus, more_of as more:
                meta = compose(recipe, data, readings, student_tokenizer(recipe), folder, rows, corpus, fill, more)
            return {**meta, **corpus.counts()}

        _look_at(pipeline, f"compose.{arm}", folder)
        manifest = pipeline.run.do(f"compose.{arm}", pipeline.compose_print(arm), [folder], work, pipeline.console.say)
        for line in composed_lines(arm, manifest["result"]):
            pipeline.console.say(f"  {line}")


def _look_at(pipeline: "Pipeline", step: str, *folders: Path) -> None:
    """Have a step that was done be done again where its token files are not as they were written."""
    from brd.composing.packing import TokenRows

    if pipeline.run.manifest(step) is None:
        return
    try:
        for folder in folders:
            TokenRows(folder).check()
    except BrdError as damage:
        pipeline.console.say(f"{step}: to be done again ({damage})")
        pipeline.run.forget(step)


def _more_of(pipeline: "Pipeline", recipe: Recipe, data: Data) -> AbstractContextManager[Any]:
    """The teacher and task inputs, for an arm that takes them."""
    if data not in (*TASK_DATA, "continuations"):
        return nullcontext()
    from brd.recipe_tasks import more_of

    return more_of(recipe, data, pipeline.run.path, pipeline.console.progress)


def _compose_healing(pipeline: "Pipeline") -> None:
    folder = pipeline.run.path / "composed" / "healing"

    def work() -> dict[str, Any]:
        from brd.composing.compose import compose_healing
        from brd.training.student import student_tokenizer

        with open_corpus(pipeline.recipe, folder.with_name("healing.dropped.parquet")) as corpus:
            meta = compose_healing(pipeline.recipe, student_tokenizer(pipeline.recipe), folder, corpus)
        return {**meta, **corpus.counts()}

    _look_at(pipeline, "compose.healing", *(folder / part for part in ("heating", "cooling", "watched")))
    pipeline.run.do("compose.healing", pipeline.heal_print(), [folder], work, pipeline.console.say)


def _compose_layers(pipeline: "Pipeline") -> None:
    folder = pipeline.run.path / "composed" / "layers"

    def work() -> dict[str, Any]:
        from brd.composing.compose import compose_held_out, held_out_texts
        from brd.training.student import student_tokenizer

        with open_corpus(pipeline.recipe) as corpus:
            texts = held_out_texts(pipeline.recipe, corpus)
            return compose_held_out(pipeline.recipe, texts, student_tokenizer(pipeline.recipe), folder)

    _look_at(pipeline, "compose.layers", folder)
    pipeline.run.do("compose.layers", pipeline.layers_print(), [folder], work, pipeline.console.say)


def reference_rows(pipeline: "Pipeline") -> int:
    return int(_reference(pipeline)["rows"])


def reference_fill(pipeline: "Pipeline") -> float:
    """The share of a row of the reference arm that is no padding."""
    meta = _reference(pipeline)
    return float(meta["tokens"] / (meta["rows"] * meta["row_tokens"]))


def _reference(pipeline: "Pipeline") -> dict[str, Any]:
    from brd.composing.packing import TokenRows

    return TokenRows(pipeline.run.path / "composed" / REFERENCE).meta


def check_task_data(pipeline: "Pipeline") -> None:
    """Before anything is read: whether task inputs are there."""
    for arm in pipeline.composed:
        if (data := pipeline.about(arm).data) in TASK_DATA:
            from brd.recipe_tasks import check_task_data

            check_task_data(pipeline.arm_recipe(arm), labels=data == "labels")
