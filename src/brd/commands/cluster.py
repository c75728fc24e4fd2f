"""The commands for reading on a cluster that this machine is not part of: `brd shards write`, `brd shards read`."""

from pathlib import Path
from typing import Annotated

import typer

from brd.errors import BrdError

app = typer.Typer(
    help="Read on a cluster: questions to a folder of shards, and answers to it by vLLM on Ray.", no_args_is_help=True
)


@app.command()
def write(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe whose teacher.kind is vllm.")],
    out: Annotated[Path | None, typer.Option("--out", help="The run folder; runs/<name> unless given.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a key of the recipe; repeatable.")
    ] = None,
) -> None:
    """Write down what is not read yet; says the name of the folder that the cluster needs."""
    from brd.reading import shards
    from brd.reading.store import Store
    from brd.recipe import load
    from brd.recipe_corpus import open_corpus
    from brd.run import RunFolder

    loaded = load(recipe, set_)
    if loaded.teacher.kind != "vllm":
        raise BrdError(f"teacher.kind is {loaded.teacher.kind}; shards are for vllm (--set teacher.kind=vllm)")
    run = RunFolder(out if out is not None else Path("runs") / loaded.name, loaded)
    with (
        Store(run.path / "readings", loaded.reading.shard_rows) as store,
        open_corpus(loaded, run.path / "readings" / "dropped.parquet") as corpus,
    ):
        job = shards.plan(loaded, run.path / "shards")
        count = shards.write(loaded, job, store, corpus)
    print(f"{job.folder}: {count} new questions; {len(job.missing())} of {len(job.inputs())} shards are to be read")


@app.command()
def read(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `brd shards write` has made.")],
    engines: Annotated[int | None, typer.Option("--engines", min=1, help="At most so many; the recipe's.")] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="Where every machine finds them; the recipe's.")
    ] = None,
) -> None:
    """Have the shards answered by vLLM on this Ray cluster. `brd read RECIPE` takes the answers from there."""
    from dataclasses import replace

    from brd.console import Console
    from brd.reading import shards

    job = shards.open_job(folder)
    given = {"engines": engines, "weights": weights}
    cluster = job.settings.cluster.model_copy(update={k: v for k, v in given.items() if v is not None})
    job = replace(job, settings=job.settings.model_copy(update={"cluster": cluster}))
    with Console() as console:
        count = sum(1 for _ in shards.read(job, console.progress))
    print(f"{folder}: {count} shards read, {len(job.missing())} missing")
