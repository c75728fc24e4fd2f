"""The command that tells whether int8 is safe: `brd check-int8`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from brd.recipe import Recipe


def check_int8(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one (demo).")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="The run folder; runs/<name of the recipe> unless given.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a key of the recipe; repeatable.")
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Sentences that are read in both dtypes, 200 at least.")] = 400,
    entities: Annotated[
        Path | None,
        typer.Option("--entities", help="Annotated names (CoNLL, IOB); evaluation.gold_entities unless given."),
    ] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Also where int8 is not faster on this machine.")] = False,
) -> None:
    """Whether the teacher may read in int8: its readings beside those in the full dtype, and the speed of both."""
    from brd import int8_check
    from brd.console import Console
    from brd.recipe import load
    from brd.run import RunFolder

    loaded = load(recipe, set_)
    folder = out if out is not None else Path("runs") / loaded.name
    with Console() as console:
        found = int8_check.check(
            loaded, RunFolder(folder, loaded), console, sentences=n, entities=entities, anyway=anyway
        )
    print("\n".join(report(loaded, found)))


def report(recipe: "Recipe", found: Mapping[str, Any]) -> list[str]:
    """What a check found, for a terminal."""
    from brd import hardware
    from brd.evaluation.tables import grid

    full = found["dtype"]
    seconds = ", ".join(f"{dtype} {1000 * value:.0f} ms" for dtype, value in found["linear_seconds"].items())
    lines = [f"the model's linear layers on 256 tokens here: {seconds}"]
    if found["fallback"]:
        lines.append(f"in int8 this model can only be run in ordinary batches: {found['fallback']}")
    if not found["prompts"]:
        lines.append(f"int8 would not be {hardware.FASTER} times as fast as {full} or more: nothing was asked")
        return [*lines, _follows(recipe, found, full)]
    if all(found["rates"].values()):
        rates = ", ".join(f"{dtype} {rate:.1f}" for dtype, rate in found["rates"].items())
        lines.append(f"readings a second: {rates}")
    lines.append(f"int8 is {found['faster']:.2f} times as fast as {full}")
    lines += ["", grid(_rows(found, full)), ""]
    failed = [f"{label} ({what})" for label, what, loss in _losses(found) if not _passed(loss)]
    worst = max((loss["high"] for *_, loss in _losses(found) if loss["high"] is not None), default=None)
    fewest = min(loss["n"] for *_, loss in _losses(found))
    if failed:
        lines.append(
            f"not passed: {', '.join(failed)} should lose less than 1 point, over {_least()} sentences or more"
        )
    else:
        lines.append("passed: each loses less than 1 point")
    if worst is not None and worst >= 0.01:
        lines.append(
            f"with {fewest} sentences a loss of {100 * worst:.1f} points cannot be excluded; four times as many (-n) "
            "halve the interval, and only the new ones are asked"
        )
    if found["gold"] is None:
        lines.append("no annotated names (evaluation.gold_entities, --entities): shares of verified readings only")
    return [*lines, _follows(recipe, found, full)]


def _least() -> int:
    from brd.int8_check import LEAST

    return LEAST


def _passed(loss: Mapping[str, Any]) -> bool:
    from brd.int8_check import Loss

    return Loss(**loss).passed


def _losses(found: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    from brd.int8_check import LOSSES

    prompts = found["prompts"].items()
    return [(label, key.replace("_f1", " F1"), one[key]) for label, one in prompts for key in LOSSES if one.get(key)]


def _rows(found: Mapping[str, Any], full: str) -> list[list[str]]:
    rows = [["%", "n", full, "int8", "loss, points", "95 %", "differ", "same words"]]
    for label, what, loss in _losses(found):
        between = "-" if loss["low"] is None else f"[{100 * loss['low']:.1f}, {100 * loss['high']:.1f}]"
        same = f"{100 * found['prompts'][label]['same_words']:.0f}" if what == "verified" else ""
        shares = [f"{100 * loss[key]:.1f}" for key in ("full", "int8", "loss")]
        rows.append([f"{label}, {what}", str(loss["n"]), *shares, between, str(loss["differ"]), same])
    return rows


def _follows(recipe: "Recipe", found: Mapping[str, Any], full: str) -> str:
    from brd.recipe_teacher import now

    if recipe.teacher.dtype != "auto":
        return f"teacher.dtype is {recipe.teacher.dtype} in this recipe, and stays so"
    takes = now(recipe) or full
    if found["began_in"] not in (None, takes):
        return f"auto takes {takes} for new runs of these prompts; this one began in {found['began_in']} and goes on so"
    return f"auto takes {takes} for this teacher and these prompts"
