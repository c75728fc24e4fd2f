"""The commands that score models and need no recipe: `brd score`, `brd tasks`, `brd contamination`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brd.errors import BrdError

if TYPE_CHECKING:
    from brd.evaluation.tasks import Metric


def score(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A model folder, a Hub name, or embedded:...")
    ] = None,
    tasks: Annotated[
        str, typer.Option("--tasks", help="Names or files, comma between them; `all` for all shipped.")
    ] = "",
    templates: Annotated[str | None, typer.Option("--templates", help="`all`, or one template's name.")] = None,
    shots: Annotated[int | None, typer.Option("--shots", min=0, help="Examples before each prompt.")] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", help="token_mean, sum, character_mean, byte_mean or pmi.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="The first so many items of each task; of a half, a sample of so many."),
    ] = None,
    half: Annotated[
        str | None,
        typer.Option("--half", help="a or b: the items of that half by hash. Choose on a, report on b."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where scores go; scores/<model> unless given.")] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="float32, bfloat16, float16; auto is what is fast here.")
    ] = "auto",
    batch_tokens: Annotated[int | None, typer.Option("--batch-tokens", min=1, help="Tokens of a forward pass.")] = None,
    check: Annotated[
        int, typer.Option("--check", min=0, help="In 16 bits: items of each task scored in float32 as well.")
    ] = 50,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", help="Also the divergence from this model, or from this folder of scores."),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="A B", help="Paired tests of two folders of scores."),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that a model brings.")
    ] = False,
) -> None:
    """Score any causal LM on tasks; or compare two models that were scored. Needs no recipe."""
    from brd.console import Console
    from brd.evaluation import tables

    chosen = _metric(metric)
    if compare is not None:
        from brd.evaluation.compare import compare as side_by_side

        if model is not None:
            raise BrdError("--compare takes two folders of scores and no MODEL")
        print(tables.comparison_table(side_by_side(*compare, chosen), *map(str, compare)))
        return
    if model is None or not tasks:
        raise BrdError("brd score needs a MODEL and --tasks (for example --tasks sst2,rte), or --compare A B")
    from typing import cast

    from brd.evaluation.items import Half
    from brd.evaluation.score_model import Model, score_model, teacher_scores
    from brd.evaluation.scorecard import requests

    if half not in (None, "a", "b"):
        raise BrdError(f"--half {half}: no such half; it should be a or b")
    asked = requests(_task_names(tasks), templates, shots, chosen, limit, cast(Half | None, half))
    folder = out if out is not None else Path("scores") / model.rstrip("/").rsplit("/", 1)[-1].replace(":", "-")
    with Console() as console:
        loaded = Model(model, _dtype(dtype), batch_tokens, trust_remote_code)
        summary = score_model(loaded, asked, folder, console, check)
        console.say(f"{model} in {summary['dtype']}; items and scores.json in {folder}")
        print(tables.scores_table(summary))
        if teacher is not None:
            from brd.evaluation.compare import divergences
            from brd.evaluation.evaluate import rounded
            from brd.run import write_json

            known = teacher_scores(teacher, asked, folder / "teacher", console, dtype, trust_remote_code)
            found = divergences(known, folder, chosen)
            write_json(folder / "divergence.json", rounded(found))
            print(tables.divergence_table(found, teacher))


def list_tasks() -> None:
    """The shipped tasks, their templates and what they ask."""
    from brd.evaluation.tasks import load_task, shipped_tasks

    for name in shipped_tasks():
        task = load_task(name)
        print(f"{name}  (templates {', '.join(task.templates)})  {task.about}")


def _task_names(tasks: str) -> list[str]:
    from brd.evaluation.tasks import shipped_tasks

    return shipped_tasks() if tasks == "all" else [name.strip() for name in tasks.split(",") if name.strip()]


def _metric(name: str | None) -> "Metric | None":
    from typing import cast, get_args

    from brd.errors import nearest
    from brd.evaluation.tasks import Metric

    if name is not None and name not in get_args(Metric):
        raise BrdError(f"--metric {name}: no such metric; {nearest(name, get_args(Metric))}")
    return cast("Metric | None", name)


def _dtype(name: str) -> str:
    from brd.errors import nearest

    known = ("auto", "float32", "bfloat16", "float16")
    if name not in known:
        raise BrdError(f"--dtype {name}: no such dtype; {nearest(name, known)}")
    return name


def contamination(
    corpus: Annotated[str, typer.Argument(metavar="CORPUS", help="A corpus (file, folder, hub:NAME) or a run folder.")],
    tasks: Annotated[str, typer.Option("--tasks", help="Names or files, comma between them; `all` for all shipped.")],
    n: Annotated[int, typer.Option("--n", help="Words in a row that have to be the same.")] = 13,
    scores: Annotated[
        Path | None, typer.Option("--scores", help="A folder of scores: accuracies with and without flagged items.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the flagged items as JSON.")] = None,
) -> None:
    """Which test items stand, in part, in a corpus or in a run's readings (n-gram overlap)."""
    from dataclasses import asdict

    from brd.console import Console
    from brd.evaluation import tables
    from brd.evaluation.compare import without
    from brd.evaluation.contamination import corpus_texts, find_overlap, task_items
    from brd.evaluation.tasks import load_task
    from brd.run import write_json

    loaded = [load_task(name) for name in _task_names(tasks)]
    with Console() as console:
        found = find_overlap(
            (item for task in loaded for item in task_items(task)),
            corpus_texts(corpus),
            n=n,
            progress=lambda words: console.progress("words read", words, None),
        )
    print(tables.overlap_table(found, n))
    if out is not None:
        write_json(out, {task: asdict(overlap) for task, overlap in found.items()})
    if scores is not None:
        flagged = {task: set(overlap.flagged) for task, overlap in found.items()}
        print(tables.without_table(without(scores, flagged)))
