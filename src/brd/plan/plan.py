"""``brd plan``: what a run will cost, before it is paid for. The teacher is really asked a small sample."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import zstandard

from brd.console import Console
from brd.experiment import HEALED, REFERENCE, split_last
from brd.pipeline import Pipeline
from brd.plan import arms, reading, training
from brd.plan.asking import Measured, ask, most_at_once, untimed
from brd.plan.corpus import Corpus, look, mean_length
from brd.plan.lessons import Sample
from brd.reading.behavior import behaviors_of
from brd.reading.parquet import write_table
from brd.reading.store import SCHEMA, Reading, Store, load
from brd.recipe import Recipe
from brd.recipe_teacher import settled
from brd.run import RunFolder, read_json, write_json
from brd.steps import composing
from brd.steps import training as training_step
from brd.text import sources

FILE = "plan.json"


def plan(
    recipe: Recipe,
    run: RunFolder,
    console: Console,
    *,
    sentences: int | None = None,
    with_training: bool = True,
    again: bool = False,
) -> dict[str, Any]:
    """Plan a run, write plan.json into its folder and return what it holds.

    ``sentences`` of each question are asked (as many as it takes to see the teacher full, unless given) and their
    answers stored; those of an earlier plan of the same teacher, prompts and corpus are not asked again unless
    ``again``. Raises what the corpus, the teacher, the student and the task inputs raise.
    """
    from brd.teachers import LazyTeacher

    sources.places(recipe.text)
    imported = _imported(recipe)
    pipeline = Pipeline(recipe, run, console)
    # Before anything is paid for: what is wrong with the student or the arms would be so afterwards.
    composing.check_task_data(pipeline)
    training_step.check(pipeline)
    student = _Student(pipeline) if pipeline.trained else None
    started = time.perf_counter() - imported
    teacher = LazyTeacher(settled(recipe, pipeline.readings_folder))
    try:
        with Store(pipeline.readings_folder, recipe.reading.shard_rows) as store:
            there = reading.Left(recipe, teacher, behaviors_of(recipe.reading), store)
            fetched = time.perf_counter() - started
            corpus = look(recipe, lambda n: console.progress("sentences of the corpus", n, None))
            there.saw(corpus)
            mark = reading.mark(recipe, there.names)
            before = read_json(run.path / FILE)
            kept = before if isinstance(before, dict) and before.get("mark") == mark and not again else {}
            measured = _measured(kept, there.to_ask(corpus), sentences)
            asked_now = measured is None
            if measured is None:
                begun = time.perf_counter() - fetched
                most = None if untimed(recipe) else most_at_once(recipe)
                questions = there.questions(corpus)
                measured = ask(teacher, recipe.teacher.named, questions, most, sentences, begun, console.progress)
            remaining = there.to_ask(corpus, measured if asked_now else None)
            lengths = {q.label: mean_length(q.candidates or corpus.pool) for q in there.questions(corpus)}
    finally:
        teacher.close()
    distinct, names = there.distinct(corpus), there.names
    del teacher, there
    sample = load(pipeline.readings_folder, (a.key for a in measured.all))
    found: dict[str, Any] = {
        "name": recipe.name,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "teacher": {"kind": recipe.teacher.kind, "model": recipe.teacher.model},
        "text": _text(recipe, corpus),
        "reading": reading.cost(recipe, corpus, distinct, lengths, measured, remaining, asked_now),
        "composing": None,
        "training": None,
        "evaluation": None,
    }
    of_arms: list[Measured] = []
    disk: dict[str, float] = {}
    if student:
        lessons = Sample(names, corpus.paragraphs, sample.values())
        amounts = student.amounts(corpus, lessons)
        earlier = [Measured.from_json(one) for one in kept.get("measured_arms", [])]
        found["composing"], of_arms = arms.cost(
            pipeline, corpus, amounts, student.tokenizer, (names, measured), earlier, sentences
        )
        found["training"] = student.cost(amounts, lessons, with_training)
        disk = student.disk(amounts, found["training"])
    asked = [*remaining.values(), *(row["to_ask"] for row in (found["composing"] or {"rows": {}})["rows"].values())]
    # What an arm asks takes about as much as a reading.
    found["disk"] = {"readings": _bytes(list(sample.values())) * sum(asked) + _text_bytes(corpus), **disk}
    found["mark"], found["measured"] = mark, measured.to_json()
    found["measured_arms"] = [one.to_json() for one in of_arms]
    write_json(run.path / FILE, found)
    return found


def _imported(recipe: Recipe) -> float:
    """The seconds that libraries take to be loaded, once in a run as here."""
    started = time.perf_counter()
    if recipe.teacher.kind == "shared_prefix":
        import_module("brd.teachers.shared_prefix")
        import_module("transformers.modeling_utils")
    return time.perf_counter() - started


def _measured(kept: Mapping[str, Any], to_ask: dict[str, int], wanted: int | None) -> Measured | None:
    """The sample of an earlier plan, where it says what this one would find."""
    if "measured" not in kept:
        return None
    measured = Measured.from_json(kept["measured"])
    for name, count in to_ask.items():
        have = len(measured.answers(name))
        if count and (not have or (wanted or 0) > have):
            return None
    return measured


def _text(recipe: Recipe, corpus: Corpus) -> dict[str, Any]:
    return {
        "exact": corpus.exact,
        "how": corpus.how,
        "sentences": {part: round(n) for part, n in corpus.sentences.items()},
        "wanted": {"train": recipe.reading.sentences, "held_out": recipe.reading.held_out_sentences},
        "distinct": round(corpus.distinct),
        "characters": round(corpus.characters),
        "too_short": round(corpus.broken["short"]),
        "too_long": round(corpus.broken["long"]),
        "error": round(corpus.error, 4),
        "seconds": round(corpus.seconds, 1),
    }


def _bytes(readings: list[Reading]) -> float:
    """Bytes of one more reading in a shard: what the second half of a sample adds to the first."""
    if len(readings) < 2:
        return 0.0
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.parquet"

        def size(some: list[Reading]) -> int:
            rows = {name: [getattr(r, name) for r in some] for name in SCHEMA.names}
            write_table(pa.table(rows, schema=SCHEMA), path)
            return path.stat().st_size

        half = len(readings) // 2
        return (size(readings) - size(readings[:half])) / (len(readings) - half)


def _text_bytes(corpus: Corpus) -> float:
    """Bytes of the paragraphs that are kept beside the readings, compressed as a sample of them is."""
    text = "\n".join(p.text for p in corpus.paragraphs).encode("utf-8", "replace")
    share = len(zstandard.compress(text)) / max(1, len(text))
    parts = sum(corpus.sentences.values()) / max(1.0, corpus.sentences["train"])
    return corpus.characters * parts * share


class _Student:
    """The part of a plan that is about training."""

    def __init__(self, pipeline: Pipeline) -> None:
        from brd.training.student import student_tokenizer

        self._pipeline, self._recipe = pipeline, pipeline.recipe
        self.tokenizer = student_tokenizer(self._recipe)
        self._parameters = training.parameters(self._recipe, self.tokenizer)
        self._composed = {arm: (pipeline.about(arm).data, pipeline.arm_recipe(arm)) for arm in pipeline.composed}
        trained = [arm for arm in pipeline.students if pipeline.about(arm).data != "none"]
        # Those of a chain train on what its last one does.
        self._files = {arm: split_last(arm)[1] for arm in trained}

    def amounts(self, corpus: Corpus, sample: Sample) -> dict[str, training.Amount]:
        """By token files."""
        return training.amounts(self._composed, REFERENCE, corpus, sample, self.tokenizer)

    def cost(self, amounts: dict[str, training.Amount], sample: Sample, timed: bool) -> dict[str, Any]:
        recipe, found = self._recipe, dict[str, dict[str, Any]]()
        own = {arm: self._composed[file][1] for arm, file in self._files.items()}
        for arm, file in self._files.items():
            much = amounts[file]
            found[arm] = {"rows": much.rows, "steps": much.steps, "tokens": much.tokens, "fill": round(much.fill, 4)}
            found[arm]["save_steps"] = own[arm].training.save_steps
        if recipe.healing:
            a_step = recipe.composing.row_tokens * recipe.training.rows_per_step
            most = recipe.healing.most_tokens + recipe.healing.cooling_tokens
            found[HEALED] = {"steps": most // a_step, "tokens": most, "at_most": True}
            found[HEALED]["save_steps"] = recipe.training.save_steps
            own = {HEALED: recipe, **own}
        trained = {file: self._composed[file] for file in self._files.values()}
        signals = training.signals(trained, amounts, len(self.tokenizer))
        asked = {file: {"tokens": tokens, "bytes": size} for file, (tokens, size) in signals.items()}
        taught = [arm for arm in own.values() if arm.training.objective != "lm"]
        told: dict[str, Any] = {
            "parameters": self._parameters,
            "arms": found,
            "signals": asked,
            "teacher_bytes": max(map(training.teacher_bytes, taught), default=0),
            "costs": None,
            "seconds": None,
        }
        return self._timed(told, own, sample) if timed else told

    def _timed(self, told: dict[str, Any], own: dict[str, Recipe], sample: Sample) -> dict[str, Any]:
        kinds, console = training.kinds(own), self._pipeline.console
        some = {name: own[name] for name in dict.fromkeys(kinds.values())}
        folder = self._pipeline.run.path / "plan.tmp"
        total, costs = training.seconds(
            some, sample, self.tokenizer, folder, lambda n, of: console.progress("training, a sample", n, of)
        )
        told["once"], told["costs"], off = total, costs, 0.0
        for name, arm in told["arms"].items():
            arm["seconds"], margin = training.arm_seconds(costs[kinds[name]], arm["steps"], arm["save_steps"])
            arm["measured_as"] = kinds[name]
            total, off = total + arm["seconds"], off + margin
        for file, asked in told["signals"].items():
            its = costs[kinds[next(arm for arm, its in self._files.items() if its == file)]]
            asked["seconds"] = its["loading"] + its["signal"] * asked["tokens"]
            total += asked["seconds"]
        told["seconds"] = {"expected": total, "low": max(0.0, total - off), "high": total + off}
        return told

    def disk(self, amounts: dict[str, training.Amount], told: dict[str, Any]) -> dict[str, float]:
        cell = 2 if len(self.tokenizer) <= 2**16 else 4
        tokens = sum(much.rows for much in amounts.values()) * self._recipe.composing.row_tokens
        if healing := self._recipe.healing:
            tokens += healing.most_tokens + healing.cooling_tokens
        students = len(self._pipeline.students) + bool(healing)
        signals = sum(asked["bytes"] for asked in told["signals"].values())
        return {
            "token_files": float(tokens * cell),
            **({"signals": float(signals)} if signals else {}),
            "students": float(students * self._parameters * training.STUDENT),
            # A checkpoint is written before the one before it is deleted; only one arm trains at a time.
            "checkpoints": float(2 * self._parameters * training.CHECKPOINT),
        }
