"""A recipe: one commented YAML file, read into one typed object. Unknown keys and bad values are refused."""

import contextlib
import os
import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, field_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from brd.errors import BrdError
from brd.reading.behavior import BEHAVIORS, is_own
from brd.sections.composing import Composing
from brd.sections.distillation import Distillation
from brd.sections.evaluation import Evaluation
from brd.sections.licences import Licences
from brd.sections.reading import SIBLINGS, Reading
from brd.sections.section import Section, all_known
from brd.sections.task_data import TaskData
from brd.sections.teacher import Teacher
from brd.sections.text import Text
from brd.sections.training import Healing, Student, Training
from brd.yaml_file import read_yaml, typed

SHIPPED = Path(__file__).parent / "recipes"


class Variant(Section):
    """An arm of one's own: a known ``arm`` with dotted keys of the recipe ``set`` to other values."""

    arm: str
    about: str = ""
    set: dict[str, Any] = {}


class Recipe(Section):
    """Everything a run depends on. ``name`` marks the run folder: another recipe's folder is never overwritten.

    ``healing`` null starts all arms from the student as it is. ``arms`` are named as in ``experiment.ARMS`` or
    ``variants``; ``brd@1`` is the arm ``brd`` with seed 1.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    text: Text = Text()
    reading: Reading = Reading()
    teacher: Teacher = Teacher()
    composing: Composing = Composing()
    student: Student = Student()
    healing: Healing | None = None
    training: Training = Training()
    distillation: Distillation = Distillation()
    task_data: TaskData = TaskData()
    evaluation: Evaluation = Evaluation()
    licences: Licences = Licences()
    variants: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]*$")], Variant] = {}
    arms: Annotated[list[str], Field(min_length=1, validate_default=True)] = ["base", "further", "brd"]

    @field_validator("composing")
    @classmethod
    def _of_known_parts(cls, composing: Composing, info: Any) -> Composing:
        # The recipe's own behaviors are known here only; the error is of the key below.
        own = info.data["reading"].names if "reading" in info.data else list(composing.mix)
        try:
            all_known("part of the mix", list(composing.mix), ("original", *dict.fromkeys([*BEHAVIORS, *own])))
        except ValueError as error:
            problem = PydanticCustomError("unknown_part", "{problem}", {"problem": str(error)})
            details = InitErrorDetails(type=problem, loc=("mix",), input=composing.mix)
            raise ValidationError.from_exception_data("composing", [details]) from None
        return composing

    @field_validator("student")
    @classmethod
    def _learns_every_token(cls, student: Student, info: Any) -> Student:
        if student.lora and "composing" in info.data and info.data["composing"].separator_as_token:
            raise ValueError(
                "lora trains no embedding, so composing.separator_as_token would stay the random vector that it "
                "begins as; leave one of them out"
            )
        return student

    @field_validator("variants")
    @classmethod
    def _of_known_arms(cls, variants: dict[str, Variant]) -> dict[str, Variant]:
        from brd.experiment import check_variants

        check_variants(variants)
        return variants

    @field_validator("arms")
    @classmethod
    def _known(cls, names: list[str], info: Any) -> list[str]:
        from brd.experiment import check_arms

        variants = info.data.get("variants", {})
        check_arms(names, variants)
        evaluation = info.data.get("evaluation")
        try:
            check_arms((evaluation and evaluation.reading_arms) or [], variants)
        except ValueError as error:
            raise ValueError(f"evaluation.reading_arms: {error}") from None
        return names


def find(name: str) -> Path:
    """The file of a recipe: a path, or the name of one that is shipped (``demo``)."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = SHIPPED / f"{name.removesuffix('.yaml')}.yaml"
    if path.parent == Path() and shipped.is_file():
        return shipped
    names = sorted(p.stem for p in SHIPPED.glob("*.yaml"))
    raise BrdError(f"{name}: no such recipe file, and no shipped recipe of that name ({', '.join(names)})")


def load(name: str, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe and apply ``a.b=c`` overrides; relative paths are taken from the recipe's folder.

    Raises BrdError with file, line and key for whatever is wrong.
    """
    path = find(name)
    tree, lines = read_yaml(path, "a recipe is a YAML mapping with keys such as name, text and teacher")
    for override in overrides or []:
        _override(tree, override)
    recipe = typed(Recipe, tree, path, lines)
    _check_variants(recipe, path)
    _check_objectives(recipe, path)
    return _absolute(recipe, path.parent, {o.split("=", 1)[0].strip() for o in overrides or []})


def _check_variants(recipe: Recipe, path: Path) -> None:
    for name, variant in recipe.variants.items():
        try:
            changed(recipe, variant.set)
        except (ValueError, BrdError) as error:
            where = [".".join(map(str, e["loc"])) + ": " + e["msg"] for e in getattr(error, "errors", list)()]
            raise BrdError(f"{path}: variants.{name}: {(where or [str(error)])[0]}") from None


def _check_objectives(recipe: Recipe, path: Path) -> None:
    from brd.experiment import check_objectives, check_task_inputs

    try:
        check_objectives(recipe)
        check_task_inputs(recipe)
    except BrdError as error:
        raise BrdError(f"{path}: {error}") from None


def changed(recipe: Recipe, overrides: dict[str, Any]) -> Recipe:
    """A copy of ``recipe`` with dotted keys set (how an arm differs from the recipe)."""
    tree = recipe.model_dump()
    for key, value in overrides.items():
        _set(tree, key.split("."), value)
    return Recipe.model_validate(tree)


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(recipe.model_dump(), sort_keys=False, allow_unicode=True)


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise BrdError(f"--set {override!r}: should be of the form section.key=value, e.g. --set training.epochs=2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise BrdError(f"--set {override!r}: the value is not valid YAML") from None
    if isinstance(value, str):
        # YAML 1.1 reads 5e-5 as text; a recipe's author means the number.
        with contextlib.suppress(ValueError):
            value = float(value) if "e" in value.lower() else value
    _set(tree, key.strip().split("."), value)


def _set(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        # A section that is off (null) comes on by a key of its own.
        branch = tree[key] = {} if tree.get(key) is None else tree[key]
        if not isinstance(branch, dict):
            raise BrdError(f"--set {'.'.join(keys)}: {key!r} is a value, not a section")
        tree = branch
    tree[keys[-1]] = value


def _expanded(key: str, value: str) -> str:
    """A path with ``$NAME`` filled in from the environment."""
    filled = os.path.expandvars(value)
    if missing := re.search(r"\$\{?(\w+)", filled):
        raise BrdError(
            f"{key}: {value}: the environment variable {missing[1]} is not set; set it, or give another path with "
            f"--set {key}=..."
        )
    return filled


def _absolute(recipe: Recipe, folder: Path, overridden: set[str]) -> Recipe:
    """Anchor relative paths: those of the file at the recipe's folder, those of ``--set`` at the working folder;
    ``$NAME`` in a path is taken from the environment."""

    def anchor(key: str, value: str) -> str:
        base = Path.cwd() if key in overridden else folder
        path = Path(_expanded(key, value)).expanduser()
        return str(path) if path.is_absolute() else str((base / path).resolve())

    def model(key: str, value: str) -> str:
        base = Path.cwd() if key in overridden else folder
        looks_local = value.startswith((".", "~", "$")) or value.endswith(".gguf") or (base / value).exists()
        if value.startswith(("embedded:", "hub:")) or not looks_local:
            return value
        return anchor(key, value)

    sources = [recipe.text.source] if isinstance(recipe.text.source, str) else recipe.text.source
    sources = [s if s == "passages" or s.startswith("hub:") else anchor("text.source", s) for s in sources]
    files = (".yaml", ".yml", ".json")

    def task(name: str) -> str:
        shipped, equals, data = name.partition("=")
        if equals:
            return f"{shipped}={anchor('evaluation.tasks', data)}"
        return anchor("evaluation.tasks", name) if name.endswith(files) else name

    def local(key: str) -> str | None:
        value = getattr(recipe.evaluation, key)
        return None if value is None else anchor(f"evaluation.{key}", value)

    def inputs(given: str | dict[str, Any]) -> str | dict[str, Any]:
        if isinstance(given, str):
            return anchor("task_data.inputs", given)
        local = {key: anchor("task_data.inputs", given[key]) for key in ("file", "bigbench") if given.get(key)}
        return {**given, **local}

    known = [path if path == SIBLINGS else anchor("reading.known", path) for path in recipe.reading.known]
    spare = recipe.text.filters.spare
    behaviors = [anchor("reading.behaviors", name) if is_own(name) else name for name in recipe.reading.behaviors]
    teacher, bundle = recipe.teacher, recipe.teacher.server.ca_bundle
    distilled = recipe.distillation.teacher_model
    return changed(
        recipe,
        {
            "text.source": sources,
            "text.filters.spare": spare and anchor("text.filters.spare", spare),
            "reading.known": known,
            "reading.behaviors": behaviors,
            # The names of models elsewhere are no paths here.
            "teacher.model": teacher.model if teacher.named else model("teacher.model", teacher.model),
            "teacher.server.ca_bundle": bundle and anchor("teacher.server.ca_bundle", bundle),
            "student.model": model("student.model", recipe.student.model),
            "distillation.teacher_model": distilled and model("distillation.teacher_model", distilled),
            "task_data.inputs": {name: inputs(given) for name, given in recipe.task_data.inputs.items()},
            "evaluation.tasks": [task(name) for name in recipe.evaluation.tasks],
            **{f"evaluation.{key}": local(key) for key in ("cache", "gold_entities", "gold_answers")},
        },
    )
