"""The commands. Nothing heavy is imported before a command needs it."""

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brd.commands import checking, cluster, planning, scoring, sharing
from brd.errors import BrdError

if TYPE_CHECKING:
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
    from brd.training import launch

    with launch.together() as ours:
        if not ours:
            return
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
    from brd.training import launch

    with launch.together() as ours:
        if not ours:
            return
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
    from brd.reading.behavior import behaviors_of
    from brd.reading.chosen import check_parts, choose
    from brd.recipe_corpus import open_corpus
    from brd.run import RunFolder
    from brd.summary import filter_lines
    from brd.text.sources import unpinned

    loaded = _load(recipe, set_)
    behaviors = behaviors_of(loaded.reading)
    counts: Counter[str] = Counter()
    corpus = open_corpus(loaded)
    for _ in choose(loaded, counts, corpus):
        pass
    for line in filter_lines(corpus.counts().get("corpus")):
        print(line)
    check_parts(loaded, counts)
    print(
        f"text: {counts['sentences_train']} sentences to read in {counts['paragraphs_train']} paragraphs, "
        f"{counts['sentences_held_out']} held out in {counts['paragraphs_held_out']}; "
        f"{counts['sentences_too_short']} too short, {counts['sentences_too_long']} too long"
    )
    if counts["sentences_train"] < loaded.reading.sentences:
        print(f"  fewer than reading.sentences ({loaded.reading.sentences}): the corpus has no more")
    for source in unpinned(loaded.text):
        print(f"  {source} may change: name a commit in text.revision, or the run cannot be repeated")
    asked = len(behaviors) * (counts["sentences_train"] + counts["sentences_held_out"])
    print(f"teacher: {loaded.teacher.kind}, {loaded.teacher.model}; {asked} readings at most")
    if loaded.teacher.kind == "openai":
        from brd.teachers.openai import key

        key(loaded.teacher)
    from brd.embedded import MODELS
    from brd.training.checks import check_reporter, check_student

    check_reporter(loaded.training.report_to)
    # An embedded one is known to be good, and may have to be fetched.
    if loaded.student.model not in MODELS:
        check_student(loaded)
    print(f"student: {loaded.student.model}; arms {', '.join(loaded.arms)}")
    for name in loaded.evaluation.tasks:
        task = load_task(name)
        next(iter(items(task, limit=1)))
        print(f"task {task.name}: ok")
    if loaded.task_data.inputs:
        from brd.recipe_tasks import task_inputs

        found: Counter[str] = Counter()
        print(
            f"task inputs: {len(task_inputs(loaded, False, found))} prompts; {found['tested']} tested inputs left out"
        )
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
def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder in which something was read.")],
    entities: Annotated[
        Path | None, typer.Option("--entities", help="Annotated names (CoNLL, IOB) that its teacher is asked for.")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option("--answers", help="Annotated answers (SQuAD's JSON) that its teacher is asked for.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="So many annotated sentences of each.")] = None,
) -> None:
    """What was read: verdicts, reasons with examples, names and questions, repeats; also audit.json."""
    from brd import audit as step
    from brd.console import Console
    from brd.run import read_json

    recipe = step.run_recipe(run)
    asked = step.annotations(recipe, entities, answers, limit or recipe.evaluation.gold_limit)
    with Console() as console:
        step.audit(recipe, run, console)
        if asked:
            step.against_gold(recipe, run, asked)
    print(step.tables(read_json(run / "audit.json")))


app.command()(planning.plan)
app.command(name="check-int8")(checking.check_int8)
app.command()(scoring.score)
app.command(name="tasks")(scoring.list_tasks)
app.command()(scoring.contamination)
app.command()(sharing.export)
app.command()(sharing.push)
app.add_typer(cluster.app, name="shards")


def _load(name: str, overrides: list[str] | None) -> "Recipe":
    from brd.recipe import load
    from brd.training.origin import check_start

    recipe = load(name, overrides)
    check_start(recipe)
    return recipe


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
    # Whoever ends a job by SIGTERM wants what Ctrl-C does: nothing half done is left behind.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _entry()
    finally:
        signal.signal(signal.SIGTERM, before)


def _entry() -> None:
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
        number, text = getattr(seen, "errno", None), str(seen)
        # numpy tells only that it could not write all of an array.
        cut = isinstance(seen, OSError) and "requested and" in text and "written" in text
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left on device" in text or cut:
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
