"""The trained students of a run: their cards kept up to date, and each found for others to take."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brd.errors import BrdError, nearest
from brd.run import read_json
from brd.training import card, origin

if TYPE_CHECKING:
    from brd.pipeline import Pipeline


def describe(run: "Pipeline", arm: str, licence: str | None = None, *, replace: bool = False) -> bool:
    """Write the card of a student that is trained, with its scores where they are current; False where somebody has
    edited the card, which then stays unless ``replace``. A ``licence`` that was once given stays."""
    folder = run.student(arm)
    if origin.is_edited(folder) and not replace:
        run.console.say(f"  {folder / origin.CARD}: was edited, so it stays as it is")
        return False
    before = origin.read_origin(folder) or {}
    told = _told(run, arm, licence or before.get("licence"))
    about = {
        "recipe": run.recipe.name,
        "arm": arm,
        "trained": told.is_trained,
        "fingerprint": run.train_print(arm),
        "licence": told.licence,
    }
    origin.write_origin(folder, about, card.card(told))
    return True


def _told(run: "Pipeline", arm: str, licence: str | None) -> card.Told:
    def result(step: str) -> dict[str, Any]:
        return dict((run.run.manifest(step) or {}).get("result") or {})

    recipe = run.recipe
    return card.Told(
        recipe=run.arm_recipe(arm),
        arm=arm,
        about=run.about(arm).about,
        trained=result(f"train.{arm}"),
        composed=result(f"compose.{arm}"),
        read=result("read"),
        layers=result("train.layers") if recipe.student.keep_layers is not None else {},
        healed=result("train.healed") if recipe.healing else {},
        figures=current_figures(run, arm),
        base=current_figures(run, "base"),
        licence=licence,
    )


def set_aside_card(folder: Path) -> None:
    """Keep a card that somebody has edited, beside a folder that is about to be made anew."""
    if folder.is_dir() and origin.is_edited(folder):
        shutil.copyfile(folder / origin.CARD, folder.with_name(f"{folder.name}.{origin.CARD}"))


def open_student(path: Path, arm: str) -> tuple["Pipeline", Path]:
    """The run in a folder, and that arm's student. Raises BrdError where there is none that is trained to its end."""
    from brd.audit import run_recipe
    from brd.console import Console
    from brd.pipeline import Pipeline
    from brd.run import RunFolder

    recipe = run_recipe(path)
    if arm not in recipe.arms:
        raise BrdError(f"--student {arm}: {path} has no such arm; {nearest(arm, recipe.arms)}")
    run = Pipeline(recipe, RunFolder(path, recipe), Console())
    if not run.run.is_current(f"train.{arm}", run.train_print(arm), run.student(arm)):
        raise BrdError(
            f"{path}: arm {arm} has not been trained to its end with its recipe.yaml; run "
            f"`brd train {path / 'recipe.yaml'} --out {path}` first"
        )
    return run, run.student(arm)


def current_figures(run: "Pipeline", arm: str) -> dict[str, Any]:
    """What an arm scored, as evaluation/<arm>.json has it; empty where that is of another recipe, or not there."""
    if arm not in run.evaluated:
        return {}
    step, file = run.evaluation_step(arm), run.evaluation_folder / f"{arm}.json"
    return dict(read_json(file) or {}) if run.run.is_current(step, run.evaluate_print(arm), file) else {}


def licence_of(run: "Pipeline", arm: str) -> str | None:
    """The licence that an arm's card states, or would."""
    before = origin.read_origin(run.student(arm)) or {}
    return before.get("licence") or card.licences(run.recipe)["student"][1]
