"""The commands. Nothing heavy is imported before a command needs it."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brd.errors import BrdError

if TYPE_CHECKING:
    from brd.evaluation.tasks import Metric
    from brd.pipeline import Pipeline
    from brd.recipe import Recipe

INTERRUPTED = 130

app = typer.Typer(
    name="brd",
    help="Basic Reading Distillation: a teacher reads text, a small student learns from the readings and is tested.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one (demo).")
]
Out = Annotated[Path | None, typer.Option("--out", help="The run folder; runs/<name of the recipe> unless given.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a key of the recipe; repeatable.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start anew; the old run folder is moved aside, not deleted.")]


@app.callback()
def main(
    context: typer.Context, debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False
) -> None:
    context.obj = debug


@app.command()
def run(
    recipe: RecipeName,
    out: Out = None,
    set_: Set = None,
    until: Annotated[str | None, typer.Option("--until", help="Stop after: read, compose, train, evaluate.")] = None,
    fresh: Fresh = False,
) -> None:
    """All steps, from text to the report. Steps whose input did not change are skipped."""
    from brd.errors import nearest
    from brd.pipeline import STEPS

    if until is not None and until not in STEPS:
        raise BrdError(f"--until {until}: no such step; {nearest(until, STEPS)}")
    _run(recipe, out, set_, fresh, until or "report")


@app.command()
def demo(out: Out = None, set_: Set = None, fresh: Fresh = False) -> None:
    """The shipped demo on the embedded model and texts: `brd run demo`."""
    _run("demo", out, set_, fresh, "report")


def _run(name: str, out: Path | None, overrides: list[str] | None, fresh: bool, last: str) -> None:
    with _pipeline(name, out, overrides, fresh) as pipeline:
        pipeline.up_to(last)
        if last == "report":
            _finish(pipeline)


def _finish(pipeline: "Pipeline") -> None:
    from brd.evaluation.tables import run_table
    from brd.run import read_json

    summary = read_json(pipeline.run.path / "summary.json")
    print(run_table(summary))
    seconds = summary["seconds"]
    print("\nseconds: " + ", ".join(f"{step} {value:.0f}" for step, value in seconds.items()), end="")
    print(f"; {sum(seconds.values()):.0f} in all; peak memory {summary['peak_rss_mb']:.0f} MB")
    print(f"report: {pipeline.run.path / 'report.html'}")


@app.command()
def read(recipe: RecipeName, out: Out = None, set_: Set = None) -> None:
    """Text to readings: ask the teacher for what is not yet known."""
    _step("read", recipe, out, set_)


@app.command()
def compose(recipe: RecipeName, out: Out = None, set_: Set = None) -> None:
    """Readings to token files, one for each trained arm."""
    _step("compose", recipe, out, set_)


@app.command()
def train(recipe: RecipeName, out: Out = None, set_: Set = None) -> None:
    """Token files to students, one for each arm."""
    _step("train", recipe, out, set_)


@app.command()
def evaluate(recipe: RecipeName, out: Out = None, set_: Set = None) -> None:
    """Students to scores: tasks and reading skill."""
    _step("evaluate", recipe, out, set_)


@app.command()
def report(recipe: RecipeName, out: Out = None, set_: Set = None) -> None:
    """Scores to summary.json and report.html."""
    _step("report", recipe, out, set_)


def _step(name: str, recipe: str, out: Path | None, overrides: list[str] | None) -> None:
    with _pipeline(recipe, out, overrides, False) as pipeline:
        getattr(pipeline, name)()


@app.command()
def validate(recipe: RecipeName, out: Out = None, set_: Set = None) -> None:
    """What would run, and what is wrong with the recipe or its input. No model is loaded."""
    from collections import Counter

    from brd.console import Console
    from brd.evaluation.items import items
    from brd.evaluation.tasks import load_task
    from brd.pipeline import Pipeline
    from brd.reading.reader import check_parts, choose
    from brd.run import RunFolder

    loaded = _load(recipe, set_)
    counts: Counter[str] = Counter()
    for _ in choose(loaded, counts):
        pass
    check_parts(loaded, counts)
    print(
        f"text: {counts['sentences_train']} sentences to read in {counts['paragraphs_train']} paragraphs, "
        f"{counts['sentences_held_out']} held out in {counts['paragraphs_held_out']}; "
        f"{counts['sentences_too_short']} too short, {counts['sentences_too_long']} too long"
    )
    if counts["sentences_train"] < loaded.reading.sentences:
        print(f"  fewer than reading.sentences ({loaded.reading.sentences}): the corpus has no more")
    asked = len(loaded.reading.behaviors) * (counts["sentences_train"] + counts["sentences_held_out"])
    print(f"teacher: {loaded.teacher.kind}, {loaded.teacher.model}; {asked} readings at most")
    if loaded.teacher.kind == "openai":
        from brd.teachers.openai import key

        key(loaded.teacher)
    print(f"student: {loaded.student.model}; arms {', '.join(loaded.arms)}")
    for name in loaded.evaluation.tasks:
        task = load_task(name)
        next(iter(items(task, limit=1)))
        print(f"task {task.name}: ok")
    folder = _folder(loaded, out)
    if (folder / "recipe.yaml").exists():
        current = Pipeline(loaded, RunFolder(folder, loaded), Console()).state()
        print(f"{folder}: would run {', '.join(s for s, done in current.items() if not done) or 'nothing'}")
    else:
        print(f"{folder}: would run everything")


@app.command()
def preview(
    recipe: RecipeName,
    set_: Set = None,
    n: Annotated[int, typer.Option("-n", min=1, help="How many sentences.")] = 5,
) -> None:
    """A few sentences with their readings, before anything is paid for."""
    from brd.preview import show

    show(_load(recipe, set_), n)


@app.command()
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


@app.command(name="tasks")
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


@app.command()
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


def _load(name: str, overrides: list[str] | None) -> "Recipe":
    from brd.recipe import load

    return load(name, overrides)


def _folder(recipe: "Recipe", out: Path | None) -> Path:
    return out if out is not None else Path("runs") / recipe.name


@contextlib.contextmanager
def _pipeline(name: str, out: Path | None, overrides: list[str] | None, fresh: bool) -> Iterator["Pipeline"]:
    """The pipeline of a recipe in its run folder, with a console that closes its progress bars."""
    from brd.console import Console
    from brd.pipeline import Pipeline
    from brd.run import RunFolder

    recipe = _load(name, overrides)
    with Console() as console:
        yield Pipeline(recipe, RunFolder(_folder(recipe, out), recipe, fresh=fresh), console)


def entry() -> None:
    """The program: every failure is one line and an exit code (2 input, 3 teacher, 130 interrupted, 1 ours)."""
    debug = "--debug" in sys.argv
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        # typer turns Ctrl-C into an exit code of its own.
        if app(standalone_mode=False) == INTERRUPTED:
            raise KeyboardInterrupt
    except BrdError as error:
        _fail(str(error), error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; what was done is kept, and the same command goes on from there", INTERRUPTED, debug)
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
    except Exception as error:
        if hasattr(error, "format_message"):
            _fail(error.format_message(), 2, debug)
        if full := _disk_full(error):
            _fail(f"{full}; what was written before stays readable: make room and run the same command again", 2, debug)
        _fail(f"unexpected {type(error).__name__}: {error} (--debug shows where)", 1, debug)


def _disk_full(error: BaseException) -> str:
    """Names the full disk behind an error, wherever in the chain it stands; '' for other errors."""
    seen: BaseException | None = error
    while seen is not None:
        number = getattr(seen, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left on device" in str(seen):
            name = getattr(seen, "filename", None)
            return f"the disk is full{f' (writing {name})' if name else ''}"
        seen = seen.__cause__ or seen.__context__
    return ""


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        raise
    print(f"brd: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    entry()
