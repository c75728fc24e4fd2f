"""The task inputs that a recipe's arms learn from, without those that are tested; and a teacher that answers them.

Composing may not know how tasks are tested: whoever composes hands it over from here.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from brd.composing.compose import More
from brd.composing.task_answers import METRIC, Choose
from brd.errors import BrdError, nearest
from brd.evaluation.items import Item, rank, render
from brd.evaluation.records import Record, Source, records, stamp
from brd.evaluation.tasks import Task, load_task, shipped_tasks
from brd.evaluation.tested import ScoredItems, texts_of, with_prompts
from brd.experiment import Data
from brd.reading.answers import Answers
from brd.reading.chosen import Progress
from brd.reading.reader import Readings, read
from brd.reading.store import shards
from brd.reading.task_inputs import TaskInput, paragraphs_of
from brd.recipe import Recipe, changed
from brd.recipe_teacher import settled
from brd.sections.task_data import source_of
from brd.teachers import LazyTeacher

# The folders of a run that hold what its arms ask the teacher: answers, and readings of task inputs' sentences.
ANSWERS, INPUTS_READ = "answers", "task_readings"


def learnt(recipe: Recipe) -> dict[str, tuple[Task, Source]]:
    """The tasks of ``task_data.inputs`` by name, each with where the inputs come from. Raises BrdError for a task that
    there is not."""
    evaluated = {task.name: task for task in map(load_task, recipe.evaluation.tasks)}
    found = {}
    for name, given in recipe.task_data.inputs.items():
        if name not in evaluated and name not in shipped_tasks():
            known = list(dict.fromkeys([*evaluated, *shipped_tasks()]))
            raise BrdError(f"task_data.inputs: unknown task {name!r}; {nearest(name, known)}")
        found[name] = (evaluated.get(name) or load_task(name), source_of(given))
    return found


def check_task_data(recipe: Recipe, labels: bool) -> None:
    """BrdError where the first input of a task cannot be had, or rendered; with ``labels`` where it has none."""
    for name, (task, source) in learnt(recipe).items():
        with _naming(name):
            first = list(islice(enumerate(records(task.name, source)), 1))
            if not first:
                raise BrdError("it holds no records")
            for template in _templates(recipe, task):
                list(render(task, template, first, graded=labels))


def task_inputs(recipe: Recipe, labels: bool, counts: Counter[str]) -> list[TaskInput]:
    """The inputs of all tasks under their templates; with ``labels`` also which candidate is right.

    ``counts`` is told of ``records``, of those that are ``tested`` (in any task) and those that occur ``twice``, which
    are left out. Raises BrdError where nothing is left of a task.
    """
    wanted = learnt(recipe)
    tested = ScoredItems(map(load_task, recipe.evaluation.tasks), recipe.evaluation.half, wanted)
    found: list[TaskInput] = []
    for name, (task, source) in wanted.items():
        with _naming(name):
            chosen = _untested(task, source, tested, recipe.task_data.limit, counts)
            for template in (templates := _templates(recipe, task)):
                items = render(task, template, chosen, graded=labels)
                for (_, record), item in zip(chosen, items, strict=True):
                    texts = [t for t in texts_of(task, record) if not tested.has_text(t)]
                    own = tuple(texts) if template == templates[0] else ()
                    found.append(
                        TaskInput(item.id, item.context, item.candidates, _right(item) if labels else None, own)
                    )
    return found


def _untested(
    task: Task, source: Source, tested: ScoredItems, limit: int | None, counts: Counter[str]
) -> list[tuple[int, Record]]:
    """The records that may be learnt, with their numbers in the source."""
    kept: dict[bytes, tuple[int, Record]] = {}
    before = counts["tested"]
    for number, (record, item) in enumerate(with_prompts(task, records(task.name, source))):
        counts["records"] += 1
        if tested.has(task, record, item):
            counts["tested"] += 1
        elif kept.setdefault(rank(task, record), (number, record))[0] != number:
            counts["twice"] += 1
    if not kept:
        raise BrdError(
            f"all its {counts['tested'] - before} records are tested; name a training split, or keep a half to test on "
            f"with evaluation.half"
        )
    # By their hashes: a file may be sorted by label.
    return sorted((kept[mark] for mark in sorted(kept)[:limit]), key=lambda one: one[0])


def _right(item: Item) -> int:
    return max(range(len(item.credits)), key=item.credits.__getitem__)


def task_parts(recipe: Recipe, data: Data) -> list[Any]:
    """What can change the inputs or which of them are tested, for fingerprints."""
    settings, evaluation = recipe.task_data, recipe.evaluation
    tasks = [(task.model_dump(), stamp(task.source)) for task in map(load_task, evaluation.tasks)]
    given = [(task.model_dump(), source.model_dump(), stamp(source)) for task, source in learnt(recipe).values()]
    how = [evaluation.half, settings.templates or evaluation.templates, settings.limit]
    return [tasks, given, how, settings.mix if data == "relaxed" else {}]


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """An error in the inputs of a task names the key, since the task's own records have the same numbers."""
    try:
        yield
    except BrdError as error:
        raise BrdError(f"task_data.inputs.{name}: {error}") from None


def _templates(recipe: Recipe, task: Task) -> list[str]:
    name = recipe.task_data.templates or recipe.evaluation.templates
    return list(task.templates) if name == "all" else [task.template(name)]


@contextmanager
def more_of(recipe: Recipe, data: Data, run: Path, progress: Progress | None) -> Iterator[More]:
    """What composing an arm takes beside readings and text. What the teacher says lies in ``answers`` of the run."""
    teacher = LazyTeacher(recipe.teacher)
    counts: Counter[str] = Counter()
    try:
        with Answers(run / ANSWERS, teacher, recipe.reading.shard_rows, progress) as answers:
            yield More(
                answers,
                counts,
                lambda: task_inputs(recipe, data == "labels", counts),
                choosing(recipe, teacher),
                lambda inputs: _read(recipe, inputs, run, teacher, progress),
            )
    finally:
        teacher.close()


def choosing(recipe: Recipe, teacher: LazyTeacher) -> Choose | None:
    """How a teacher that has probabilities chooses among candidates; None for one that gives text only."""
    return partial(_scored, recipe, teacher) if recipe.teacher.kind == "shared_prefix" else None


def _read(
    recipe: Recipe, inputs: Sequence[TaskInput], run: Path, teacher: LazyTeacher, progress: Progress | None
) -> Readings:
    """The readings of the inputs' sentences, in a folder of their own; what the run has read is not asked again."""
    known = [*recipe.reading.known, *map(str, shards(run / "readings"))]
    own = changed(recipe, {"reading.known": known})
    with reading_teacher(recipe, run, teacher) as reader:
        read(own, run / INPUTS_READ, reader, progress, chosen=paragraphs_of(recipe, inputs))
    return Readings(recipe, run / INPUTS_READ)


@contextmanager
def reading_teacher(recipe: Recipe, run: Path, teacher: LazyTeacher) -> Iterator[LazyTeacher]:
    """The one that reads inputs as the run's text is read: ``teacher`` itself, unless its readings were checked in
    int8, which tells nothing of choosing among candidates."""
    settings = settled(recipe, run / "readings")
    if settings == recipe.teacher:
        yield teacher
        return
    other = LazyTeacher(settings)
    try:
        yield other
    finally:
        other.close()


def _scored(recipe: Recipe, teacher: LazyTeacher, inputs: Sequence[TaskInput]) -> Iterator[tuple[int, int]]:
    """The candidates that the teacher finds likeliest, scored as a student's are."""
    from brd.evaluation.scoring import Scorer

    engine: Any = teacher.opened
    scorer = Scorer(engine.model, engine.tokenizer, batch_tokens=recipe.evaluation.batch_tokens)
    items = (Item(one.place, one.prompt, one.candidates, (0.0,) * len(one.candidates)) for one in inputs)
    for number, scores in enumerate(scorer.score(items)):
        yield number, scores.prediction(METRIC)
