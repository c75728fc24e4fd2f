"""Benchmark tasks as data: one YAML file a task, read into one typed object (``items`` renders it).

Other formats become the same object: a BIG-bench ``task.json``, and ``lm_eval:NAME`` for a task of
lm-evaluation-harness.
"""

from pathlib import Path
from typing import Annotated, Literal

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, ValidationInfo, field_validator

from brd.errors import BrdError, nearest
from brd.evaluation import bigbench
from brd.evaluation.records import READERS, Section, Source, Text
from brd.yaml_file import Lines, at, read_yaml, typed

SHIPPED = Path(__file__).parent / "tasks"
LM_EVAL = "lm_eval:"

Metric = Literal["token_mean", "sum", "character_mean", "byte_mean", "pmi"]


class Template(Section):
    """A prompt and its candidates, in Jinja.

    ``candidates`` is a list of texts, fixed (' yes') or with fields (' {{ sol1 }}'), or one Jinja expression whose
    value is a list (``choices.text``), when items differ in their number of candidates; these are trimmed and get
    one space in front. With ``verbatim`` candidates follow the prompt as they are: for languages without spaces.
    ``unconditional`` is the prompt of the PMI metric: what stands before a candidate when nothing was asked.
    """

    prompt: Text
    candidates: Annotated[list[Text], Field(min_length=2)] | Text
    verbatim: bool = False
    unconditional: Text | None = None

    @property
    def fixed(self) -> bool:
        """Whether all items have the same candidates."""
        return isinstance(self.candidates, list) and not any("{" in text for text in self.candidates)


class FewShot(Section):
    """Examples before each prompt, always the same ones: the first ``count`` records of ``source``, or else of the
    task's own source, which are then not scored."""

    count: Annotated[int, Field(strict=True, ge=0)] = 0
    source: Source | None = None
    separator: Text = "\n\n"


class Task(Section):
    """A classification or multiple-choice task (paper: Testing).

    The first of ``templates`` is the default. ``label`` names the field with the gold label; ``labels`` says which
    candidate that is: a mapping of its raw values, written as text (``1``, ``true``, ``entailment``), to the index
    of the right candidate, or a Jinja expression whose value is the list of labels in the candidates' order.
    Instead of both, ``credits`` is a Jinja expression whose value is what each candidate earns (1 for right).
    ``fields`` are more fields for the templates, made of the record's own by Jinja. ``metric`` ranks candidates.
    Tasks of one ``group`` are averaged before they count in a macro-average (the paper's column BIG-bench).
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    version: Annotated[int, Field(strict=True, ge=0)]
    about: Text
    source: Source
    fields: dict[str, str] = Field(default_factory=dict)
    templates: Annotated[dict[str, Template], Field(min_length=1)]
    label: Text | None = None
    labels: Annotated[dict[str, Annotated[int, Field(strict=True, ge=0)]], Field(min_length=1)] | Text | None = None
    credits: Annotated[Text | None, Field(validate_default=True)] = None
    metric: Metric = "token_mean"
    few_shot: FewShot = FewShot()
    group: Text | None = None
    citation: Text
    licence: Text

    @field_validator("labels", mode="before")
    @classmethod
    def _as_text(cls, labels: object) -> object:
        return {label_text(raw): index for raw, index in labels.items()} if isinstance(labels, dict) else labels

    @field_validator("credits")
    @classmethod
    def _graded(cls, credits: str | None, info: ValidationInfo) -> str | None:
        by_label = [info.data.get(key) is not None for key in ("label", "labels")]
        if any(by_label) == (credits is not None) or any(by_label) != all(by_label):
            raise ValueError("a task has either the keys label and labels, or the key credits")
        return credits

    def template(self, name: str | None = None) -> str:
        """The name, or that of the default template; BrdError with the nearest for an unknown one."""
        if name is None:
            return next(iter(self.templates))
        if name not in self.templates:
            raise BrdError(f"task {self.name}: unknown template {name!r}; {nearest(name, list(self.templates))}")
        return name


def label_text(raw: object) -> str:
    """A raw label as ``labels`` writes it, so that 1 and "1", or true and "true", are the same label."""
    return str(raw).lower() if isinstance(raw, bool) else str(raw)


# Fields are data and never compiled; the sandbox guards against task files from elsewhere.
ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True
)


def load_task(name_or_path: str | Path) -> Task:
    """The task of a shipped name (``sst2``), a YAML file, a BIG-bench ``task.json``, or ``lm_eval:NAME``.

    ``xnli=dev.jsonl`` is the shipped task with another copy of its data (.jsonl, .parquet or .csv, the same fields).

    Raises BrdError with file, line and key for whatever is wrong in the file, and for an unknown name.
    """
    name = str(name_or_path)
    if name.startswith(LM_EVAL):
        return _foreign(name.removeprefix(LM_EVAL))
    name, _, data = name.partition("=")
    path = task_file(name)
    if data:
        return _with_data(load_task(path), data)
    if path.suffix == ".json":
        return _bigbench(path)
    tree, lines = read_yaml(path, "a task is a YAML mapping with keys such as name, source and templates")
    task = typed(Task, tree, path, lines)
    _check_templates(task, path, lines)
    shots = task.few_shot
    if shots.source is not None:
        shots = shots.model_copy(update={"source": shots.source.anchored(path.parent)})
    return task.model_copy(update={"source": task.source.anchored(path.parent), "few_shot": shots})


def _with_data(task: Task, data: str) -> Task:
    if not Path(data).is_file():
        raise BrdError(f"{task.name}={data}: no such file of data")
    if Path(data).suffix not in READERS:
        raise BrdError(f"{task.name}={data}: a file of data should end in {', '.join(READERS)}")
    return task.model_copy(update={"source": Source(file=str(Path(data).resolve()))})


def task_file(name: str) -> Path:
    """The file of a shipped name or of a path. Raises BrdError with the nearest name when there is none."""
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml", ".json") or path.parent != Path():
        raise BrdError(f"{name}: no such task file")
    shipped = SHIPPED / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    raise BrdError(f"unknown task {name!r}; {nearest(name, shipped_tasks())}")


def shipped_tasks() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


# A format of other people's that writes whole prompts and answers: nothing is added to them.
_AS_WRITTEN = {"prompt": "{{ context }}", "candidates": "answers", "verbatim": True}


def _bigbench(path: Path) -> Task:
    tree = bigbench.read(path)
    name = bigbench.name(path)
    plain = "{{ input | trim }}{{ '\n' if input | trim }}Answer:"
    task = {
        "name": name,
        "version": 0,
        "about": str(tree.get("description") or f"{name} of BIG-bench"),
        "source": {"bigbench": str(path.resolve())},
        "templates": {"bigbench": _AS_WRITTEN, "plain": {"prompt": plain, "candidates": "choices"}},
        "credits": "scores",
        "group": "BIG-bench",
        "few_shot": {"separator": tree.get("few_shot_example_separator") or "\n"},
        "citation": "Beyond the Imitation Game (BIG-bench), TMLR 2023",
        "licence": "Apache-2.0",
    }
    # Its name, from the file's, and its separator may not be what a task can have.
    return typed(Task, task, path, {})


def _foreign(name: str) -> Task:
    from brd.bridge import lm_eval

    about = lm_eval.describe(name)
    normalised = about.pop("normalised")
    return Task.model_validate(
        {
            **about,
            "source": {"lm_eval": str(Path(name).resolve()) if Path(name).is_file() else name},
            "templates": {"lm_eval": _AS_WRITTEN},
            "credits": "scores",
            "metric": "character_mean" if normalised else "sum",
            "licence": "that of the data set",
        }
    )


def _check_templates(task: Task, path: Path, lines: Lines) -> None:
    """What can be known of templates and labels before any record is seen."""
    expressions: list[tuple[tuple[str, ...], object]] = [(("labels",), task.labels), (("credits",), task.credits)]
    texts: list[tuple[tuple[str, ...], str]] = [(("fields", name), text) for name, text in task.fields.items()]
    for name, template in task.templates.items():
        place: tuple[str, ...] = ("templates", name)
        texts += [((*place, "prompt"), template.prompt), ((*place, "unconditional"), template.unconditional or "")]
        if isinstance(template.candidates, str):
            expressions.append(((*place, "candidates"), template.candidates))
        else:
            texts += [((*place, "candidates"), text) for text in template.candidates]
    for where, text in texts:
        _compiles(lambda text=text: ENVIRONMENT.from_string(text), where, path, lines)
    for where, expression in expressions:
        if isinstance(expression, str):
            _compiles(lambda text=expression: ENVIRONMENT.compile_expression(text), where, path, lines)
    for name, template in task.templates.items():
        for key, text in (("prompt", template.prompt), ("unconditional", template.unconditional or "")):
            if not template.verbatim and (problem := context_problem(text)):
                hint = " (in YAML, |- keeps a block without its last line break)" if text.endswith("\n") else ""
                _refuse(("templates", name, key), f"{problem}{hint}", path, lines)
        if isinstance(template.candidates, list):
            fixed = tuple(text for text in template.candidates if "{" not in text)
            if problem := candidates_problem(fixed, template.verbatim):
                _refuse(("templates", name, "candidates"), problem, path, lines)
            for label, index in task.labels.items() if isinstance(task.labels, dict) else ():
                if index >= len(template.candidates):
                    raise BrdError(
                        f"{at(path, lines, ('labels', label))}: labels.{label}: candidate {index} is asked for, but "
                        f"template {name} has only {len(template.candidates)} (numbered from 0)"
                    )


def _compiles(attempt: object, place: tuple[str, ...], path: Path, lines: Lines) -> None:
    try:
        attempt()  # type: ignore[operator]
    except jinja2.TemplateError as error:
        _refuse(place, f"not valid Jinja ({error})", path, lines)


def _refuse(place: tuple[str, ...], problem: str, path: Path, lines: Lines) -> None:
    raise BrdError(f"{at(path, lines, place)}: {'.'.join(place)}: {problem}")


def context_problem(context: str) -> str | None:
    """What is wrong with a prompt. The boundary rule: it ends in no whitespace, each candidate begins with one space.

    Common vocabularies glue a space to the word after it, so a text cut there keeps the tokens that it has as a whole.
    """
    if context != context.rstrip():
        return f"the context ends in whitespace ({context[-20:]!r}); it should end in a word or sign, try | trim"
    return None


def candidates_problem(texts: tuple[str, ...], verbatim: bool = False) -> str | None:
    for index, text in enumerate(texts):
        if not text.strip():
            return f"candidate {index} is empty"
        if not verbatim and (not text.startswith(" ") or text[1].isspace()):
            return f"candidate {index} ({text[:40]!r}) should begin with exactly one space, try | trim on its field"
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        return f"two candidates are the same ({twice[:40]!r})"
    return None
