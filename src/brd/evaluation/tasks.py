"""Benchmark tasks as data: one YAML file a task, read into one typed object and rendered into items to score.

The boundary rule: a context ends in no whitespace, and each candidate begins with exactly one space. Common
vocabularies glue a space to the word after it, so a text cut there keeps the tokens that it has as a whole.
Templates and items that break the rule are refused; ``| trim`` in a template tidies a field.
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from brd.embedded import benchmark_folder
from brd.errors import BrdError, nearest
from brd.yaml_file import Lines, at, read_yaml, typed

SHIPPED = Path(__file__).parent / "tasks"

Record = dict[str, Any]
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hub(Section):
    """A dataset of the Hugging Face Hub, streamed; ``revision`` pins a commit."""

    name: Text
    subset: str | None = None
    split: Text
    revision: str | None = None


class Source(Section):
    """Where the records come from: exactly one of three.

    ``embedded`` is a folder of Arrow files of the embedded benchmark (``glue/rte/validation``), ``file`` a .jsonl,
    .parquet or .csv file (UTF-8; relative to the task file), ``hub`` a dataset of the Hub.
    """

    embedded: Text | None = None
    file: Text | None = None
    hub: Hub | None = None

    @model_validator(mode="after")
    def _one(self) -> "Source":
        given = self.model_fields_set
        if len(given) != 1 or any(getattr(self, key) is None for key in given):
            raise ValueError("should have exactly one of the keys embedded, file and hub")
        return self

    @field_validator("file")
    @classmethod
    def _readable(cls, name: str | None) -> str | None:
        if name is not None and Path(name).suffix not in READERS:
            raise ValueError(f"should end in {', '.join(READERS)}")
        return name


class Template(Section):
    """A prompt and its candidates, all Jinja; candidates are fixed words (' yes') or per item (' {{ sol1 }}')."""

    prompt: Text
    candidates: Annotated[list[Text], Field(min_length=2)]


class Task(Section):
    """A zero-shot classification or multiple-choice task (paper: Testing).

    The first of ``templates`` is the default. ``label`` names the field that holds the gold label; ``labels`` maps
    its raw values, written as text (``1``, ``true``, ``entailment``), to the index of the right candidate.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    version: Annotated[int, Field(strict=True, ge=0)]
    about: Text
    source: Source
    templates: Annotated[dict[str, Template], Field(min_length=1)]
    label: Text
    labels: Annotated[dict[str, Annotated[int, Field(strict=True, ge=0)]], Field(min_length=1)]
    citation: Text
    licence: Text

    @field_validator("labels", mode="before")
    @classmethod
    def _as_text(cls, labels: object) -> object:
        return {label_text(raw): index for raw, index in labels.items()} if isinstance(labels, dict) else labels


@dataclass(frozen=True, slots=True)
class Item:
    """One question: ``gold`` is the index of the right one of ``candidates``; ``id`` is task/position (from 0)."""

    id: str
    context: str
    candidates: tuple[str, ...]
    gold: int


def label_text(raw: object) -> str:
    """A raw label as ``labels`` writes it, so that 1 and "1", or true and "true", are the same label."""
    return str(raw).lower() if isinstance(raw, bool) else str(raw)


def load_task(name_or_path: str | Path) -> Task:
    """The task of a shipped name (``sst2``) or of a YAML file.

    Raises BrdError with file, line and key for whatever is wrong in the file, and for an unknown name.
    """
    path = task_file(str(name_or_path))
    tree, lines = read_yaml(path, "a task is a YAML mapping with keys such as name, source and templates")
    task = typed(Task, tree, path, lines)
    _check_templates(task, path, lines)
    if task.source.file is None:
        return task
    file = str((path.parent / task.source.file).resolve())
    return task.model_copy(update={"source": task.source.model_copy(update={"file": file})})


def items(task: Task, template: str | None = None, limit: int | None = None) -> Iterator[Item]:
    """The task's items in the order of its source; ``limit`` takes the first so many, always the same ones.

    Records are streamed and rendered one at a time. Raises BrdError, at once for an unknown template or a limit
    below 1, and while iterating for data that are missing, broken or do not fit the template or the labels.
    """
    name = template if template is not None else next(iter(task.templates))
    if name not in task.templates:
        raise BrdError(f"task {task.name}: unknown template {name!r}; {nearest(name, list(task.templates))}")
    if limit is not None and limit < 1:
        raise BrdError(f"task {task.name}: limit should be at least 1 (got {limit})")
    return _render(task, name, limit)


def _render(task: Task, name: str, limit: int | None) -> Iterator[Item]:
    chosen = task.templates[name]
    prompt = _ENVIRONMENT.from_string(chosen.prompt)
    candidates = [_ENVIRONMENT.from_string(candidate) for candidate in chosen.candidates]
    number = -1
    for number, record in enumerate(_records(task)):
        if number == limit:
            return
        where = f"task {task.name}, template {name}, item {number}"
        # A null field counts as missing: Jinja would render it as the word None.
        fields = {key: value for key, value in record.items() if value is not None}
        if task.label not in fields:
            raise BrdError(f"{where}: no label in field {task.label!r}; fields with a value: {', '.join(fields)}")
        gold = task.labels.get(label_text(fields[task.label]))
        if gold is None:
            raise BrdError(f"{where}: label {fields[task.label]!r} is not among labels ({', '.join(task.labels)})")
        try:
            context = prompt.render(fields)
            texts = tuple(candidate.render(fields) for candidate in candidates)
        # A template calls whatever filters and methods it likes, which raise what they like.
        except Exception as error:
            reason = f"{error}; fields with a value: {', '.join(fields)}"
            raise BrdError(f"{where}: the template cannot be filled in: {reason}") from None
        problem = _context_problem(context) or _candidates_problem(texts)
        if problem:
            raise BrdError(f"{where}: {problem}")
        yield Item(f"{task.name}/{number}", context, texts, gold)
    if number < 0:
        raise BrdError(f"task {task.name}: its source holds no records")


# Fields are data and never compiled; the sandbox guards against task files from elsewhere.
_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True
)


def _context_problem(context: str) -> str | None:
    if context != context.rstrip():
        return f"the context ends in whitespace ({context[-20:]!r}); it should end in a word or sign, try | trim"
    return None


def _candidates_problem(texts: tuple[str, ...]) -> str | None:
    for index, text in enumerate(texts):
        if not text.strip():
            return f"candidate {index} is empty"
        if not text.startswith(" ") or text[1].isspace():
            return f"candidate {index} ({text[:40]!r}) should begin with exactly one space, try | trim on its field"
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        return f"two candidates are the same ({twice[:40]!r})"
    return None


def _check_templates(task: Task, path: Path, lines: Lines) -> None:
    """What can be known of templates and labels before any record is seen."""
    for name, template in task.templates.items():
        texts = [(("prompt",), template.prompt), *((("candidates",), text) for text in template.candidates)]
        for key, text in texts:
            try:
                _ENVIRONMENT.from_string(text)
            except jinja2.TemplateError as error:
                place = ("templates", name, *key)
                raise BrdError(f"{at(path, lines, place)}: {'.'.join(place)}: not valid Jinja ({error})") from None
        if problem := _context_problem(template.prompt):
            hint = " (in YAML, |- keeps a block without its last line break)" if template.prompt.endswith("\n") else ""
            place = ("templates", name, "prompt")
            raise BrdError(f"{at(path, lines, place)}: {'.'.join(place)}: {problem}{hint}")
        fixed = tuple(text for text in template.candidates if "{" not in text)
        if problem := _candidates_problem(fixed):
            place = ("templates", name, "candidates")
            raise BrdError(f"{at(path, lines, place)}: {'.'.join(place)}: {problem}")
        for label, index in task.labels.items():
            if index >= len(template.candidates):
                raise BrdError(
                    f"{at(path, lines, ('labels', label))}: labels.{label}: candidate {index} is asked for, but "
                    f"template {name} has only {len(template.candidates)} (numbered from 0)"
                )


def task_file(name: str) -> Path:
    """The file of a shipped name or of a path. Raises BrdError with the nearest name when there is none."""
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or path.parent != Path():
        raise BrdError(f"{name}: no such task file")
    shipped = SHIPPED / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    raise BrdError(f"unknown task {name!r}; {nearest(name, sorted(p.stem for p in SHIPPED.glob('*.yaml')))}")


def _records(task: Task) -> Iterator[Record]:
    source = task.source
    if source.hub is not None:
        return _from_hub(task.name, source.hub)
    if source.embedded is not None:
        return _from_arrow(task.name, benchmark_folder() / source.embedded)
    file = Path(str(source.file))
    if not file.is_file():
        raise BrdError(f"task {task.name}: no such file: {file} (key source.file)")
    return READERS[file.suffix](file)


def _from_hub(name: str, hub: Hub) -> Iterator[Record]:
    import datasets

    try:
        yield from datasets.load_dataset(hub.name, hub.subset, split=hub.split, revision=hub.revision, streaming=True)
    # The Hub's client raises errors of many libraries: network, missing names, unknown splits.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BrdError(
            f"task {name}: cannot read {hub.name} from the Hub ({reason}); check the network and the keys below "
            f"source.hub, or copy the task file and give it a local source.file"
        ) from None


def _from_arrow(name: str, folder: Path) -> Iterator[Record]:
    import pyarrow as pa

    files = sorted(folder.glob("*.arrow"))
    if not files:
        known = sorted({str(f.parent.relative_to(benchmark_folder())) for f in benchmark_folder().rglob("*.arrow")})
        wanted = str(folder.relative_to(benchmark_folder()))
        raise BrdError(f"task {name}: the embedded benchmark has no {wanted}; {nearest(wanted, known)}")
    for file in files:
        with pa.memory_map(str(file)) as mapped, pa.ipc.open_stream(mapped) as stream:
            for batch in stream:
                yield from batch.to_pylist()


def _from_jsonl(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                raise BrdError(f"{path}:{number}: not UTF-8 text") from None
            except json.JSONDecodeError as error:
                raise BrdError(f"{path}:{number}: not valid JSON ({error.msg}, column {error.colno})") from None
            if not isinstance(record, dict):
                raise BrdError(f"{path}:{number}: each line should be a JSON object with the task's fields")
            yield record


def _from_csv(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for record in reader:
                if None in record or None in record.values():
                    raise BrdError(f"{path}:{reader.line_num}: should have {len(reader.fieldnames or [])} fields")
                yield record
        except UnicodeDecodeError:
            raise BrdError(f"{path}: not UTF-8 text after line {reader.line_num}") from None
        except csv.Error as error:
            raise BrdError(f"{path}:{reader.line_num}: not valid CSV ({error})") from None


def _from_parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise BrdError(f"{path}: not readable as Parquet ({str(error).splitlines()[0]})") from None


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _from_jsonl,
    ".csv": _from_csv,
    ".parquet": _from_parquet,
}
