"""Reading by shards, on a cluster: a folder of questions goes out, a folder of answers comes back.

    RUN/shards/<hash>/
      job.json              the teacher and the prompts
      in/part-00000.parquet   questions: key, behavior, place, sentence, what follows the prefix
      out/part-00000.parquet  the answers to exactly these, by key; the file is whole or absent

The folder holds all that is needed to read it: it can be copied to a cluster, read there (``brd shards read``), and
``out`` copied back. One job is one teacher with one set of prompts; more sentences are more shards of it. An output
file is also one that ``reading.known`` takes.
"""

import contextlib
import fcntl
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from brd.errors import BrdError, TeacherUnreachable
from brd.reading.parquet import read_table, write_table
from brd.reading.pending import (
    Intake,
    Question,
    load_questions,
    prompts,
    question_keys,
    questions,
    save_questions,
)
from brd.reading.reader import teacher_hash
from brd.reading.store import SCHEMA, Store
from brd.recipe import Recipe
from brd.run import fingerprint, read_json, write_json
from brd.sections.teacher import Teacher as TeacherSettings
from brd.teachers import ray_data
from brd.teachers.teacher import Answer, Prompt
from brd.text.corpus import Corpus

# What ``reading.known`` takes.
OUT = pa.schema(
    [
        SCHEMA.field(name)
        for name in (
            *("key", "behavior", "text", "raw", "finished", "teacher", "prompt_hash", "prompt_tokens", "new_tokens"),
        )
    ]
)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Job:
    """A folder of questions and answers. ``teacher`` is the hash of the teacher's identity; ``prompts`` are found
    by their hashes."""

    folder: Path
    settings: TeacherSettings
    teacher: str
    prompts: dict[str, Prompt]

    def inputs(self) -> list[Path]:
        return sorted((self.folder / "in").glob("part-*.parquet"))

    def output(self, source: Path) -> Path:
        return self.folder / "out" / source.name

    def missing(self) -> list[Path]:
        """The input shards that have no answers yet."""
        return [source for source in self.inputs() if not self.output(source).exists()]


def plan(recipe: Recipe, folder: Path) -> Job:
    """The job of a recipe's teacher and prompts under ``folder``; made where it is not there yet."""
    identity = ray_data.identity(recipe.teacher)
    about = {
        "identity": identity,
        "prompts": {mark: asdict(prompt) for mark, prompt in prompts(recipe).items()},
    }
    path = folder / fingerprint("shards", about)
    write_json(path / "job.json", {"teacher": recipe.teacher.model_dump(exclude={"server"}), **about})
    return open_job(path)


def open_job(folder: Path) -> Job:
    """The job in a folder. Raises BrdError where there is none."""
    found = read_json(folder / "job.json")
    try:
        settings = TeacherSettings.model_validate(found["teacher"])
        asked = {
            mark: Prompt(p["prefix"], tuple(p["stop"]), int(p["max_new_tokens"]))
            for mark, p in found["prompts"].items()
        }
    except (TypeError, KeyError, ValueError):
        raise BrdError(
            f"{folder}: no folder of shards; `brd shards write RECIPE` makes one and says its name"
        ) from None
    return Job(folder, settings, teacher_hash(ray_data.load(settings)), asked)


def write(recipe: Recipe, job: Job, store: Store, corpus: Corpus | None = None) -> int:
    """Write down what is neither in the store nor in a shard already; returns how many questions that were.

    Shards that are there stay as they are: an interrupted call goes on behind the last whole one.
    """
    there = question_keys(job.inputs())
    numbers = [int(path.stem.removeprefix("part-")) for path in job.inputs()]
    pending, number, count = (
        questions(recipe, job.teacher, store, there, corpus),
        max(numbers, default=-1) + 1,
        0,
    )
    (job.folder / "in").mkdir(exist_ok=True)
    while rows := list(islice(pending, recipe.teacher.cluster.shard_rows)):
        save_questions(rows, job.folder / "in" / f"part-{number:05d}.parquet")
        number, count = number + 1, count + len(rows)
    return count


def read(job: Job, progress: Progress | None = None) -> Generator[Path, None, None]:
    """Have all shards without answers answered, all engines at once; yields each output file when it is whole.

    An interrupted call leaves whole files only, and the next asks for the others. Raises TeacherUnreachable where the
    cluster or an engine fails (what others answered is kept), BrdError where it gives answers that were not asked for.
    """
    with _locked(job.folder):
        for scratch in (job.folder / "out").glob("*.tmp"):
            scratch.unlink()
        missing = {source.stem: source for source in job.missing()}
        if not missing:
            return
        sizes = {source.stem: read_table(source, ["shard"]).num_rows for source in job.inputs()}
        total = sum(sizes.values())
        done = total - sum(sizes[name] for name in missing)
        came: dict[str, _Shard] = {}
        refused: Counter[str] = Counter()
        failed: dict[str, str] = {}
        answered = done
        for row in ray_data.read_files(job.settings, job.prompts, list(missing.values())):
            if row.shard not in missing:
                raise BrdError(f"{job.folder}: an answer to shard {row.shard!r}, which was not asked")
            if row.failed:
                # Nothing that an engine's failure says about a sentence is kept: the shard is read again.
                failed.setdefault(row.shard, row.error)
                continue
            shard = came.get(row.shard) or came.setdefault(row.shard, _Shard(missing[row.shard]))
            shard.add(row.key, row.answer)
            if row.error:
                refused[row.error] += 1
            else:
                answered += 1
            done += 1
            if shard.whole:
                if not answered:
                    raise BrdError(f"teacher.kind vllm: it refuses every question ({next(iter(refused))})")
                target = job.output(shard.source)
                _write(job, came.pop(row.shard), target)
                del missing[row.shard]
                yield target
            if progress:
                progress("shards", done, total)
        if failed:
            raise TeacherUnreachable(
                f"{job.folder}: an engine failed at {len(failed)} shards (the first is {next(iter(failed))}: "
                f"{failed[next(iter(failed))]}); the same command asks for these again"
            )
        if missing:
            raise TeacherUnreachable(
                f"{job.folder}: Ray gave back too few answers to {len(missing)} shards (the first is "
                f"{next(iter(missing))}); the same command asks for these again"
            )
        if refused:
            [(reason, _)] = refused.most_common(1)
            told = f"vLLM refused {sum(refused.values())} sentences, which count as malformed ({reason})"
            print(told, file=sys.stderr, flush=True)


class _Shard:
    """Answers to one shard as they come."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.rows = read_table(source, ["key", "behavior", "prompt_hash", "text"]).to_pylist()
        self._open = {row["key"] for row in self.rows}
        self.answers: dict[str, Answer] = {}

    def add(self, key: str, answer: Answer) -> None:
        if key not in self._open:
            again = "answered twice" if key in self.answers else "not in it"
            raise BrdError(f"{self.source}: an answer to key {key!r}, which is {again}; nothing of this shard is taken")
        self._open.remove(key)
        self.answers[key] = answer

    @property
    def whole(self) -> bool:
        return not self._open


def _write(job: Job, shard: _Shard, target: Path) -> None:
    found = [shard.answers[row["key"]] for row in shard.rows]
    columns = {
        "key": [row["key"] for row in shard.rows],
        "behavior": [row["behavior"] for row in shard.rows],
        "text": [row["text"] for row in shard.rows],
        "raw": [answer.text for answer in found],
        "finished": [answer.finished for answer in found],
        "teacher": [job.teacher] * len(found),
        "prompt_hash": [row["prompt_hash"] for row in shard.rows],
        "prompt_tokens": [answer.prompt_tokens for answer in found],
        "new_tokens": [answer.new_tokens for answer in found],
    }
    target.parent.mkdir(exist_ok=True)
    write_table(pa.table(columns, schema=OUT), target)


def take(job: Job, outputs: Iterable[Path], store: Store, intake: Intake) -> int:
    """Put the answers of output files into the store; returns how many were new.

    Raises BrdError for a file that does not answer exactly the questions of its input shard.
    """
    count = 0
    for path in outputs:
        source = job.folder / "in" / path.name
        if not source.exists():
            raise BrdError(f"{path}: answers to no shard of this job (there is no {source})")
        if not all(key in store for key in question_keys([source])):
            count += intake.take(_answered(source, path, job.teacher))
    return count


def _answered(source: Path, path: Path, teacher: str) -> list[tuple[Question, Answer]]:
    asked = load_questions(source)
    table = read_table(path)
    again = f"move it away, and the shard is read again ({source})"
    if absent := [name for name in OUT.names if name not in table.column_names]:
        raise BrdError(f"{path}: no answers in this file (it has no column {absent[0]!r}); {again}")
    if set(table["teacher"].to_pylist()) - {teacher}:
        raise BrdError(f"{path}: answers of another teacher than the one that this recipe names; {again}")
    names = ("key", "raw", "prompt_tokens", "new_tokens", "finished")
    rows = list(zip(*(table[name].to_pylist() for name in names), strict=True))
    found = {key: Answer(*rest) for key, *rest in rows}
    wanted = {question.key for question in asked}
    if len(found) < len(rows):
        twice = next(key for key, times in Counter(key for key, *_ in rows).items() if times > 1)
        raise BrdError(f"{path}: two answers to key {twice!r}; {again}")
    if strange := sorted(found.keys() - wanted):
        raise BrdError(f"{path}: an answer to key {strange[0]!r}, which was not asked; {again}")
    if lacking := sorted(wanted - found.keys()):
        raise BrdError(f"{path}: no answer to {len(lacking)} of {len(wanted)} keys, such as {lacking[0]!r}; {again}")
    return [(question, found[question.key]) for question in asked]


def read_recipe(
    recipe: Recipe, run: Path, progress: Progress | None = None, corpus: Corpus | None = None
) -> Counter[str]:
    """Read what a run does not know yet: write shards, have them answered here, take the answers. Returns counts of
    the read step. Everything is in the store then, so that ``reader.read`` has nothing to ask."""
    with Store(run / "readings", recipe.reading.shard_rows) as store:
        job = plan(recipe, run / "shards")
        intake = Intake(recipe, job.teacher, store)
        take(job, [job.output(source) for source in job.inputs() if job.output(source).exists()], store, intake)
        write(recipe, job, store, corpus)
        if job.missing():
            _check_ray(job)
        with contextlib.closing(read(job, progress)) as outputs:
            take(job, outputs, store, intake)
    return intake.counts


def _check_ray(job: Job) -> None:
    from importlib.util import find_spec

    if find_spec("ray") is None:
        raise BrdError(
            f"teacher.kind vllm: {len(job.missing())} shards are to be read. {ray_data.MISSING}; or copy {job.folder} "
            "to the cluster, `brd shards read` it there, copy its folder out back, and give the same command again"
        )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BrdError(f"{folder}: another process is reading these shards; wait for it") from None
        yield
