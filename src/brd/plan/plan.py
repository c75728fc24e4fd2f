"""``brd plan``: what a run will cost, before it is paid for. The teacher is really asked a small sample."""

import os
import platform
import time
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import zstandard

from brd.console import Console
from brd.experiment import HEALED, REFERENCE
from brd.pipeline import Pipeline
from brd.plan import training
from brd.plan.asking import Measured, ask, most_at_once, untimed
from brd.plan.corpus import Candidate, Corpus, look, mean_length
from brd.plan.cost import mean_at, priced
from brd.plan.lessons import Sample
from brd.plan.timing import InProcess, Slots, doubling
from brd.reading.behavior import Behaviors, behaviors_of
from brd.reading.known import known_to
from brd.reading.naming import Name, Names
from brd.reading.parquet import write_table
from brd.reading.reader import teacher_hash
from brd.reading.store import SCHEMA, Reading, Store, load
from brd.recipe import Recipe
from brd.recipe_corpus import corpus_parts
from brd.recipe_teacher import settled
from brd.run import RunFolder, fingerprint, read_json, write_json
from brd.teachers.teacher import Teacher
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

    ``sentences`` of each behavior are asked (as many as it takes to see the teacher full, unless given) and their
    answers stored; those of an earlier plan of the same teacher, prompts and corpus are not asked again unless
    ``again``. Raises what the corpus, the teacher and the student raise.
    """
    from brd.teachers import LazyTeacher

    sources.places(recipe.text)
    imported = _imported(recipe)
    pipeline = Pipeline(recipe, run, console)
    # Before anything is paid for: what is wrong with the student would be so afterwards.
    student = _Student(pipeline) if pipeline.trained else None
    behaviors = behaviors_of(recipe.reading)
    started = time.perf_counter() - imported
    teacher = LazyTeacher(settled(recipe, pipeline.readings_folder))
    try:
        with Store(pipeline.readings_folder, recipe.reading.shard_rows) as store:
            there = _Reading(recipe, teacher, behaviors, store)
            fetched = time.perf_counter() - started
            corpus = look(recipe, lambda n: console.progress("sentences of the corpus", n, None))
            there.saw(corpus)
            mark = _mark(recipe, there.names)
            measured = None if again else _measured(run, mark, there.to_ask(corpus), sentences)
            asked_now = measured is None
            if measured is None:
                candidates = there.candidates(corpus)
                begun = time.perf_counter() - fetched
                measured = ask(recipe, teacher, there.names, candidates, sentences, store, begun, console.progress)
            remaining = there.to_ask(corpus, measured if asked_now else None)
            left = there.candidates(corpus)
            lengths = {name: mean_length(found or corpus.pool) for name, found in left.items()}
    finally:
        teacher.close()
    del teacher, there.teacher
    sample = load(pipeline.readings_folder, (a.key for a in measured.all))
    found: dict[str, Any] = {
        "name": recipe.name,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "teacher": {"kind": recipe.teacher.kind, "model": recipe.teacher.model},
        "text": _text(recipe, corpus),
        "reading": _reading(recipe, corpus, there.distinct(corpus), lengths, measured, remaining, asked_now),
        "disk": {"readings": _bytes(list(sample.values())) * sum(remaining.values()) + _text_bytes(corpus)},
        "training": None,
        "evaluation": None,
    }
    if student:
        lessons = Sample(there.names, corpus.paragraphs, sample.values())
        found["training"] = student.training(corpus, lessons, with_training)
        found["disk"] |= student.disk(found["training"])
    found["mark"], found["measured"] = mark, asdict(measured)
    write_json(run.path / FILE, found)
    return found


def _imported(recipe: Recipe) -> float:
    """The seconds that libraries take to be loaded, once in a run as here."""
    started = time.perf_counter()
    if recipe.teacher.kind == "shared_prefix":
        import_module("brd.teachers.shared_prefix")
        import_module("transformers.modeling_utils")
    return time.perf_counter() - started


class _Reading:
    """What is known of a run's readings, and what is left to ask."""

    def __init__(self, recipe: Recipe, teacher: Teacher, behaviors: Behaviors, store: Store) -> None:
        self.teacher, self.names = teacher, Names(recipe, behaviors, teacher_hash(teacher))
        self._store, self._paid = store, known_to(recipe, self.names, store.folder.parent)
        stored = store.shards() or any(store.last(name, lambda _: True, 1) for name in behaviors)
        self._any = bool(self._paid or stored)
        self.known: dict[str, float] = {name.label: 0.0 for name in self.names}

    def _is_known(self, name: Name, sentence: str) -> bool:
        if not self._any:
            return False
        key = name.key(sentence)
        return key in self._store or key in self._paid

    def saw(self, corpus: Corpus) -> None:
        if self._any:
            for name in self.names:
                known = (c for c in corpus.seen if _asked(name, c) and self._is_known(name, c.text))
                self.known[name.label] = sum(c.weight for c in known)

    def candidates(self, corpus: Corpus) -> dict[str, list[Candidate]]:
        return {
            name.label: [c for c in corpus.pool if _asked(name, c) and not self._is_known(name, c.text)]
            for name in self.names
        }

    def distinct(self, corpus: Corpus) -> dict[str, float]:
        """Different sentences that each behavior is asked about."""
        languages = corpus.languages
        return {n.label: languages.get(n.language, 0.0) if n.language else corpus.distinct for n in self.names}

    def to_ask(self, corpus: Corpus, measured: Measured | None = None) -> dict[str, int]:
        """Sentences of each behavior that have no answer yet, after what was asked just now."""
        distinct = self.distinct(corpus)
        now = {name: len(measured.answers(name)) if measured else 0 for name in self.known}
        return {n: max(0, round(distinct[n] - known - now[n])) for n, known in self.known.items()}


def _asked(name: Name, candidate: Candidate) -> bool:
    return name.language in ("", candidate.paragraph.language)


def _mark(recipe: Recipe, names: Names) -> str:
    """Of all that a measured sample tells about: the teacher, how and from where it is asked, what it is asked."""
    return fingerprint(
        "calls",
        names.teacher,
        [name.prompt_hash for name in names],
        recipe.teacher.model_dump(exclude={"prices"}),
        *corpus_parts(recipe),
        [platform.node(), os.cpu_count()],
    )


def _measured(run: RunFolder, mark: str, to_ask: dict[str, int], wanted: int | None) -> Measured | None:
    """The sample of an earlier plan, where it still says what this one would find."""
    before = read_json(run.path / FILE)
    if not isinstance(before, dict) or before.get("mark") != mark:
        return None
    measured = Measured.from_json(before["measured"])
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


def _reading(
    recipe: Recipe,
    corpus: Corpus,
    distinct: dict[str, float],
    lengths: dict[str, float],
    measured: Measured,
    remaining: dict[str, int],
    asked_now: bool,
) -> dict[str, Any]:
    timed = _timing(recipe, measured)
    # Of whole prompts servers say how much was in their cache; batches promise nothing of it.
    whole, cache = recipe.teacher.named, not untimed(recipe)
    rows: dict[str, dict[str, Any]] = {}
    before, spent = 0, [corpus.seconds, corpus.seconds, corpus.seconds]
    for name, left in remaining.items():
        answers = measured.answers(name)
        row: dict[str, Any] = {
            "known": round(distinct[name]) - left - (len(answers) if asked_now else 0),
            "asked": len(answers),
            "to_ask": left,
        }
        if left and answers:
            asked = [a.characters for a in answers]
            own, _ = mean_at(asked, [a.own for a in answers], lengths[name])
            new, new_error = mean_at(asked, [a.new for a in answers], lengths[name])
            # The first requests fill the server's cache.
            warm = measured.calls[name][-1]
            cached = sum(a.cached for a in warm) / max(1, sum(a.prompt for a in warm)) if whole and cache else 0.0
            # None of a server, whose own tokens are the whole prompt's.
            prefix = answers[0].prompt - answers[0].own
            tokens = {
                "input": left * own + prefix,
                "cached": left * own * cached,
                "output": left * new,
                "output_error": left * new_error,
            }
            row |= {
                "prefix_tokens": prefix,
                "tokens": {key: round(value) for key, value in tokens.items()},
                "verified": round(sum(a.verified for a in answers) / len(answers), 4),
            }
            if timed:
                takes = timed.predict(name, left, before)
                # More or fewer sentences than the estimate of the corpus take as much more or less.
                off = 2 * corpus.error * takes.seconds
                each = (takes.seconds, max(0.0, takes.low - off), takes.high + off)
                row["seconds"] = dict(zip(_SECONDS, each, strict=True))
                spent = [s + t for s, t in zip(spent, each, strict=True)]
                before += left
        rows[name] = row
    once = measured.start + timed.start if timed and any(remaining.values()) else 0.0
    total = dict(zip(_SECONDS, (s + once for s in spent), strict=True))
    found: dict[str, Any] = {
        "behaviors": rows,
        "asked_now": len(measured.all) if asked_now else 0,
        "counted": all(a.counted for a in measured.all),
        "at_once": most_at_once(recipe),
        "full": not timed or timed.full,
        "retries": sum(a.retries for a in measured.all),
        "seconds": None if untimed(recipe) else {"once": once, "text": corpus.seconds, **total},
        "untimed": untimed(recipe),
        "prices": None,
        "batch": recipe.teacher.kind == "openai" and recipe.teacher.server.batch,
    }
    if prices := recipe.teacher.prices:
        summed = {key: sum(r["tokens"][key] for r in rows.values() if "tokens" in r) for key in _TOKENS}
        found["prices"] = priced(prices, summed)
        paid = measured.all if asked_now else []
        sample = {
            "input": sum(a.prompt for a in paid),
            "cached": sum(a.cached for a in paid),
            "output": sum(a.new for a in paid),
            "output_error": 0.0,
        }
        found["prices"]["sample"] = priced(prices, sample)["total"]
    return found


_TOKENS = ("input", "cached", "output", "output_error")
_SECONDS = ("expected", "low", "high")


def _timing(recipe: Recipe, measured: Measured) -> InProcess | Slots | None:
    """None where there is nothing left to ask, or no time to be told."""
    calls, most = measured.calls, most_at_once(recipe)
    if not calls or untimed(recipe):
        return None
    if recipe.teacher.kind == "openai":
        return Slots(calls, doubling(most), most, cold=False)
    if recipe.teacher.kind == "llamacpp":
        return Slots(calls, lambda _: most, most, cold=True)
    return InProcess(calls, most)


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
        self._tokenizer = student_tokenizer(self._recipe)
        self._parameters = training.parameters(self._recipe, self._tokenizer)
        trained = [arm for arm in pipeline.students if pipeline.about(arm).data != "none"]
        names = dict.fromkeys([REFERENCE, *trained]) if trained else {}
        self._arms = {arm: (pipeline.about(arm).data, pipeline.arm_recipe(arm)) for arm in names}

    def training(self, corpus: Corpus, sample: Sample, timed: bool) -> dict[str, Any]:
        arms = training.amounts(self._recipe, self._arms, REFERENCE, corpus, sample, self._tokenizer)
        for name in set(arms) - set(self._pipeline.students):
            del arms[name]["steps"], arms[name]["tokens"]
        found: dict[str, Any] = {"parameters": self._parameters, "arms": arms, "costs": None, "seconds": None}
        healing = self._recipe.healing
        if healing:
            a_step = self._recipe.composing.row_tokens * self._recipe.training.rows_per_step
            most = healing.most_tokens + healing.cooling_tokens
            arms[HEALED] = {"steps": most // a_step, "tokens": most, "at_most": True}
            arms[HEALED]["save_steps"] = self._recipe.training.save_steps
        if not timed:
            return found
        folder = self._pipeline.run.path / "plan.tmp"
        say = self._pipeline.console.progress
        costs = training.seconds(
            self._recipe, sample, self._tokenizer, folder, lambda n, of: say("training, a sample", n, of)
        )
        total, off = costs["once"], 0.0
        for arm in arms.values():
            if "steps" in arm:
                arm["seconds"], margin = training.arm_seconds(costs, arm["steps"], arm["save_steps"])
                total, off = total + arm["seconds"], off + margin
        found["costs"] = costs
        found["seconds"] = {"expected": total, "low": max(0.0, total - off), "high": total + off}
        return found

    def disk(self, told: dict[str, Any]) -> dict[str, float]:
        cell = 2 if len(self._tokenizer) <= 2**16 else 4
        rows = sum(arm.get("rows", 0) for arm in told["arms"].values()) * self._recipe.composing.row_tokens
        if healing := self._recipe.healing:
            rows += healing.most_tokens + healing.cooling_tokens
        students = len(self._pipeline.students) + bool(healing)
        # A checkpoint is written before the one before it is deleted; only one arm trains at a time.
        return {
            "token_files": float(rows * cell),
            "students": float(students * self._parameters * training.STUDENT),
            "checkpoints": float(2 * self._parameters * training.CHECKPOINT),
        }
