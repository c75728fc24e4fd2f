"""The command that tells what a run will cost: `brd plan`."""

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one (demo).")]


def plan(
    recipe: Recipe,
    out: Annotated[
        Path | None, typer.Option("--out", help="The run folder; runs/<name of the recipe> unless given.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a key of the recipe; repeatable.")
    ] = None,
    sentences: Annotated[
        int | None,
        typer.Option("--sentences", min=1, help="Ask so many of each behavior; enough to see the teacher full."),
    ] = None,
    training: Annotated[
        bool, typer.Option("--training/--no-training", help="Also measure a few real training steps.")
    ] = True,
    again: Annotated[bool, typer.Option("--again", help="Ask anew what an earlier plan has measured.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print plan.json instead of tables.")] = False,
) -> None:
    """What the run will cost: time, tokens, price, disk; asks the teacher a small sample, which the run then has."""
    import json

    from brd.console import Console
    from brd.plan import plan as step
    from brd.plan.tables import tables
    from brd.recipe import load
    from brd.run import RunFolder
    from brd.training import launch

    loaded = load(recipe, set_)
    folder = out if out is not None else Path("runs") / loaded.name
    with launch.together() as ours:
        if not ours:
            return
        with Console() as console:
            found = step.plan(
                loaded,
                RunFolder(folder, loaded),
                console,
                sentences=sentences,
                with_training=training,
                again=again,
            )
            console.say(f"kept in {folder / step.FILE}; answers in {folder / 'readings'}")
    if json_:
        print(json.dumps({key: value for key, value in found.items() if key not in ("mark", "measured")}, indent=2))
    else:
        print(tables(found))
