"""The step from token files to students: the start that all arms share, then each arm."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brd.errors import BrdError
from brd.experiment import HEALED, REFERENCE
from brd.recipe import Recipe
from brd.run import fingerprint
from brd.steps.composing import reference_rows
from brd.students import describe, set_aside_card

if TYPE_CHECKING:
    from brd.pipeline import Pipeline

# By how much arms may differ in trained tokens where rows end in padding (a share of the most).
SAME_TOKENS = 0.02


def train(pipeline: "Pipeline") -> None:
    """Token files to students."""
    healing = ["healing"] if pipeline.recipe.healing else []
    layers = ["layers"] if pipeline.recipe.student.keep_layers is not None else []
    pipeline.needs("compose", [f"compose.{arm}" for arm in [*layers, *healing, *pipeline.composed]])
    if layers:
        _measure_layers(pipeline)
    best_fit = pipeline.recipe.composing.packing == "best_fit"
    if best_fit:
        _check_tokens(pipeline)
    if pipeline.recipe.healing:
        _heal(pipeline)
    tokens: dict[str, int] = {}
    dtypes: dict[str, str] = {}
    for arm in pipeline.students:
        folder = pipeline.student(arm)

        def work(arm: str = arm, folder: Path = folder) -> dict[str, Any]:
            from brd.composing.compose import steps_for
            from brd.training import launch
            from brd.training.student import load_student, student_tokenizer
            from brd.training.trainer import save

            set_aside_card(folder)
            recipe, about = _cut(pipeline, pipeline.arm_recipe(arm)), pipeline.about(arm)
            tokenizer = student_tokenizer(recipe)
            start = pipeline.student(HEALED) if recipe.healing else None
            if about.after is not None:
                start = pipeline.student(about.after)
            if about.data == "none":
                save(load_student(recipe, tokenizer, start), tokenizer, folder)
                return {"steps": 0, "trained_tokens": 0, "passes": 0.0, "losses": []}
            steps = steps_for(reference_rows(pipeline), recipe)
            task = {
                "recipe": recipe,
                "tokens": pipeline.tokens(arm),
                "steps": steps,
                "tokenizer": tokenizer,
                "folder": folder,
                "start": start,
                "mark": pipeline.train_print(arm),
                "held_out": _held_out(pipeline, recipe, tokenizer),
                "keep_checkpoints": True,
                "method": _method(pipeline, recipe, pipeline.tokens(arm), tokenizer),
            }
            told = {
                "on_step": lambda step, loss: _on_step(pipeline, arm, steps, step, loss),
                "on_held_out": lambda step, loss: _log_training(pipeline, arm, step, held_out_loss=loss),
            }
            result: dict[str, Any] = launch.run(
                recipe.training, "brd.training.trainer:train", task, told, folder.with_name(f"{arm}.process")
            )
            return result

        manifest = pipeline.run.do(f"train.{arm}", pipeline.train_print(arm), [folder], work, pipeline.console.say)
        describe(pipeline, arm)
        shutil.rmtree(folder.with_name(f"{arm}.checkpoints"), ignore_errors=True)
        if pipeline.about(arm).data != "none":
            result = manifest["result"]
            dtypes[arm] = result["dtype"]
            if not _trains_otherwise(pipeline, arm):
                tokens[arm] = result["trained_tokens"]
            pipeline.console.say(
                f"  {arm}: {result['steps']} steps, {result['trained_tokens']} trained tokens, "
                f"{result['passes']:.2f} passes over its text"
            )
    if len(set(dtypes.values())) > 1:
        raise BrdError(f"the arms were trained in different dtypes: {dtypes}; name one in training.dtype")
    if _apart(tokens) > (SAME_TOKENS if best_fit else 0):
        raise BrdError(f"the arms trained on different numbers of tokens: {tokens}; please report this as a bug")


def _check_tokens(pipeline: "Pipeline") -> None:
    """BrdError, before any arm is trained, when arms would train on clearly different numbers of tokens."""
    from brd.composing.compose import steps_for
    from brd.composing.packing import TokenRows
    from brd.training.documents import trained_tokens
    from brd.training.trainer import row_order

    tokens: dict[str, int] = {}
    for arm in pipeline.trained:
        if not _trains_otherwise(pipeline, arm):
            recipe = pipeline.arm_recipe(arm)
            rows = TokenRows(pipeline.tokens(arm))
            total = steps_for(reference_rows(pipeline), recipe) * recipe.training.rows_per_step
            tokens[arm] = trained_tokens(rows, row_order(len(rows), total, recipe.seed))
    if _apart(tokens) > SAME_TOKENS:
        raise BrdError(
            f"composing.packing: the arms' documents fill rows so differently that they would train on different "
            f"numbers of tokens in the same steps ({tokens}); use longer rows (composing.row_tokens), or "
            "composing.packing: stream"
        )


def _trains_otherwise(pipeline: "Pipeline", arm: str) -> bool:
    changes = pipeline.about(arm).overrides.keys() - {"training.objective"}
    return any(key.startswith("training.") for key in changes)


def check(pipeline: "Pipeline") -> None:
    """Before hours of reading: whether the student is there and takes the rows, whether the teachers of distillation
    have its tokens, and the packages that training wants."""
    from brd.training.checks import check_reporter, check_student

    check_reporter(pipeline.recipe.training.report_to)
    check_student(pipeline.recipe)
    recipes = [pipeline.arm_recipe(arm) for arm in pipeline.students if pipeline.about(arm).data != "none"]
    for recipe in recipes:
        if recipe.training.objective != "lm":
            from brd.training.distillation.method import check_method
            from brd.training.student import student_tokenizer

            check_method(recipe, student_tokenizer(recipe))


def _method(pipeline: "Pipeline", recipe: Recipe, tokens: Path, tokenizer: Any) -> Any:
    """How to train by another objective than the plain one; None for that."""
    if recipe.training.objective == "lm":
        return None
    from brd.training.distillation.method import method_of

    return method_of(recipe, tokens, tokenizer, pipeline.run.path / "signals", pipeline.console.progress)


def _on_step(pipeline: "Pipeline", name: str, steps: int, step: int, loss: float) -> None:
    _log_training(pipeline, name, step, loss=loss)
    pipeline.console.progress(f"train {name}", step, steps, f"loss {loss:.3f}")


def _log_training(pipeline: "Pipeline", name: str, step: int, **figures: float) -> None:
    pipeline.run.log({"step": "train", "arm": name, "train_step": step, **figures})


def _held_out(pipeline: "Pipeline", recipe: Recipe, tokenizer: Any) -> Path | None:
    """The token file of held-out text where training looks at its loss."""
    if not recipe.training.evaluate_steps:
        return None
    folder = pipeline.run.path / "composed" / "held_out"

    def work() -> dict[str, Any]:
        from brd.composing.compose import compose_held_out
        from brd.reading.chosen import iter_paragraphs

        texts = (p.text for p in iter_paragraphs(pipeline.readings_folder) if p.held_out)
        return compose_held_out(recipe, texts, tokenizer, folder)

    wanted = fingerprint("held_out", pipeline.compose_print(REFERENCE))
    pipeline.run.do("compose.held_out", wanted, [folder], work, pipeline.console.say)
    return folder


def _cut(pipeline: "Pipeline", recipe: Recipe) -> Recipe:
    """With the layers that were chosen by measuring, the same for all arms."""
    from brd.training.layers import cut_to

    return cut_to(recipe, pipeline.result("train.layers")["kept"] if recipe.student.keep_layers is not None else None)


def _measure_layers(pipeline: "Pipeline") -> None:
    def work() -> dict[str, Any]:
        from brd.composing.packing import TokenRows
        from brd.training.layers import measure
        from brd.training.student import load_whole

        rows = TokenRows(pipeline.run.path / "composed" / "layers")
        return measure(pipeline.recipe, load_whole(pipeline.recipe), rows)

    manifest = pipeline.run.do("train.layers", pipeline.layers_print(), [], work, pipeline.console.say)
    kept, influence = manifest["result"]["kept"], manifest["result"]["influence"]
    dropped = [f"{n} ({influence[n]:.3f})" for n in range(len(influence)) if n not in kept]
    pipeline.console.say(f"  layers: {len(kept)} of {len(influence)} kept; without {', '.join(dropped)}")


def _heal(pipeline: "Pipeline") -> None:
    folder = pipeline.student(HEALED)

    def work() -> dict[str, Any]:
        from brd.training import launch
        from brd.training.student import student_tokenizer

        task = {
            "recipe": _cut(pipeline, pipeline.recipe),
            "tokens": pipeline.run.path / "composed" / "healing",
            "tokenizer": student_tokenizer(pipeline.recipe),
            "folder": folder,
            "mark": pipeline.heal_print(),
        }
        told = {"on_step": lambda steps, step, loss: _on_step(pipeline, HEALED, steps, step, loss)}
        result: dict[str, Any] = launch.run(
            pipeline.recipe.training,
            "brd.training.healing:heal",
            task,
            told,
            folder.with_name(f"{HEALED}.process"),
        )
        return result

    manifest = pipeline.run.do("train.healed", pipeline.heal_print(), [folder], work, pipeline.console.say)
    for left in ("work", "checkpoints"):
        shutil.rmtree(folder.with_name(f"{HEALED}.{left}"), ignore_errors=True)
    result = manifest["result"]
    first, last = result["curve"][0], result["curve"][-1]
    pipeline.console.say(
        f"  {HEALED}: loss on held-out text {first[1]:.3f} -> {last[1]:.3f} over {last[0]} tokens "
        f"({'stands still' if result['stands_still'] else 'still falling at the limit'})"
    )


def _apart(tokens: dict[str, int]) -> float:
    """How far the least lies below the most, as a share of it."""
    return 1 - min(tokens.values()) / max(tokens.values()) if tokens else 0.0
