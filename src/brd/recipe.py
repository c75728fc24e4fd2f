"""A recipe: one commented YAML file, read into one typed object. Unknown keys and bad values are refused."""

import contextlib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from brd.embedded import MODEL_NAME
from brd.errors import BrdError, nearest
from brd.reading.behavior import BEHAVIORS
from brd.server import Server
from brd.yaml_file import read_yaml, typed

SHIPPED = Path(__file__).parent / "recipes"
TEACHERS = ("shared_prefix", "llamacpp", "openai")

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Text(Section):
    """The corpus. ``source`` is ``passages`` (our own prose), a file, folder or glob (or several), or ``hub:NAME``.

    ``order`` shuffled takes the paragraphs of all sources in an order of their hashes, so that a part of the corpus
    has something of every source; the whole corpus is then held in memory. ``held_out`` and ``healing`` are shares of
    the documents that no arm trains on: for the tests of reading, and for healing the student beforehand.
    """

    source: str | list[str] = "passages"
    layout: Literal["blank_line", "line"] = "line"
    field: str = "text"
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    encoding_errors: Literal["strict", "replace"] = "strict"
    language: str = "en"
    min_characters: Positive = 15
    max_characters: Positive = 400
    order: Literal["corpus", "shuffled"] = "corpus"
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    healing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Reading(Section):
    """What is read: how many sentences of the training and of the held-out documents, by which behaviors.

    ``known`` are Parquet files of readings that others paid for (``brd export``); what they hold is not asked again.
    Reading stops where less than ``floor`` of a behavior's last ``floor_window`` answers are verified (never: null).
    """

    behaviors: Annotated[list[str], Field(min_length=1)] = list(BEHAVIORS)
    exemplars: Literal["plain", "instruct"] = "plain"
    sentences: Positive = 1000
    held_out_sentences: Positive = 100
    drop_bad_entities: bool = True
    shard_rows: Positive = 5000
    known: list[str] = []
    floor: Share | None = None
    floor_window: Positive = 500

    @field_validator("behaviors")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        return _all_known("behavior", names, tuple(BEHAVIORS))


class Teacher(Section):
    """Who reads. ``kind`` is ``shared_prefix`` (any causal LM of transformers), ``llamacpp`` (any GGUF file) or
    ``openai`` (``server``, which knows the model by the name ``model``).

    ``dtype`` int8 (``shared_prefix`` on a CPU): linear layers in 8-bit integers, the rest in the fast dtype.
    """

    kind: str = "shared_prefix"
    model: Annotated[str, Field(validate_default=True)] = MODEL_NAME
    dtype: Dtype | Literal["int8"] = "auto"
    chat_template: bool = False
    batch_size: Positive = 64
    max_new_tokens: Positive = 72
    trust_remote_code: bool = False
    server: Annotated[Server, Field(validate_default=True)] = Server()

    @field_validator("kind")
    @classmethod
    def _known(cls, name: str) -> str:
        return _all_known("teacher", [name], TEACHERS)[0]

    @field_validator("model")
    @classmethod
    def _on_the_server(cls, name: str, info: Any) -> str:
        if info.data.get("kind") == "openai" and (name.startswith("embedded:") or not name):
            raise ValueError("should be the model's name on the server, where teacher.kind is openai")
        return name

    @field_validator("server")
    @classmethod
    def _named(cls, server: Server, info: Any) -> Server:
        if info.data.get("kind") == "openai" and server.base_url is None:
            raise ValueError("base_url is missing; it should name the server, e.g. http://localhost:8000/v1")
        return server

    def answering(self) -> dict[str, Any]:
        """The keys that can change an answer, for fingerprints."""
        if self.kind != "openai":
            return self.model_dump(exclude={"batch_size", "server"})
        return self.model_dump(
            include={"kind": True, "model": True, "chat_template": True, "max_new_tokens": True}
            | {"server": {"revision", "extra"}}
        )


class Composing(Section):
    """Lessons. ``mix`` says how many times ``original`` (D_ORI) and each behavior's lessons are taken (1 unless said).

    ``separator_as_token`` makes the separator one new token, which changes the student's vocabulary.
    ``shuffle_readings`` gives every sentence the reading of another one: the form without the reading.
    ``sentences`` takes only the first so many of the sentences that were read (in whole paragraphs).
    """

    level: Literal["paragraph", "sentence"] = "paragraph"
    separator: Annotated[str, Field(min_length=1)] = "\n\n"
    separator_as_token: bool = False
    verified_only: bool = True
    shuffle_readings: bool = False
    sentences: Positive | None = None
    mix: dict[str, Annotated[float, Field(ge=0, le=100)]] = {}
    row_tokens: Annotated[int, Field(ge=8, le=131072)] = 512

    @field_validator("mix")
    @classmethod
    def _known(cls, mix: dict[str, float]) -> dict[str, float]:
        _all_known("part of the mix", list(mix), ("original", *BEHAVIORS))
        return mix

    def weight(self, part: str) -> float:
        return self.mix.get(part, 1.0)


class Student(Section):
    """Who learns: ``layers`` keeps only the transformer layers with these numbers (all when null)."""

    model: str = MODEL_NAME
    layers: list[Annotated[int, Field(ge=0)]] | None = None
    trust_remote_code: bool = False


class Healing(Section):
    """Training of the student on original text before any arm, where its weights come from a coarse file.

    At a constant rate until the loss on held-out text falls by less than ``enough`` (a share of it) over
    ``check_tokens``, or ``most_tokens`` are trained; then over ``cooling_tokens`` the rate falls to 0.
    """

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    most_tokens: Positive = 600_000
    check_tokens: Positive = 60_000
    enough: Share = 0.003
    cooling_tokens: Positive = 100_000


class Training(Section):
    """Causal LM training of each arm: the same steps, tokens and schedule for all.

    ``compile`` has torch compile the layers first, which takes a C++ compiler and some seconds.
    """

    epochs: Annotated[float, Field(gt=0, le=1000)] = 1.0
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-5
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Share = 0.1
    weight_decay: Share = 0.01
    rows_per_step: Positive = 4
    micro_rows: Positive = 4
    dtype: Dtype = "auto"
    compile: bool = False
    save_steps: Positive = 100

    @field_validator("micro_rows")
    @classmethod
    def _divides(cls, rows: int, info: Any) -> int:
        if info.data.get("rows_per_step", rows) % rows:
            raise ValueError("must divide training.rows_per_step")
        return rows


class Evaluation(Section):
    """Tasks (names of shipped task files, or paths of task files) and the reading skill on held-out text.

    ``templates`` is ``all``, or the name of one; each task's default unless said, as are ``shots`` and ``metric``.
    ``half`` keeps the items of one half by hash: choose on a, report on b. ``cache`` is a folder with item scores, or
    with folders of them; what is there is not scored again. ``gold_entities`` (IOB) and ``gold_answers`` (SQuAD's
    JSON) are files of human annotations, of which ``gold_limit`` sentences and questions are asked. ``teacher`` has the
    teacher scored as well, on at most so many items a task. ``leave_out`` names tasks without which the contrasts over
    seeds are told a second time.
    """

    tasks: list[str] = ["sst2", "rte", "cb", "boolq", "piqa"]
    templates: str | None = None
    shots: Annotated[int, Field(ge=0)] | None = None
    metric: Literal["token_mean", "sum", "character_mean", "byte_mean", "pmi"] | None = None
    limit: Positive | None = None
    half: Literal["a", "b"] | None = None
    cache: str | None = None
    batch_tokens: Positive | None = None
    dtype: Dtype = "auto"
    reading_sentences: Positive = 100
    reading_prompted: bool = True
    gold_entities: str | None = None
    gold_answers: str | None = None
    gold_limit: Positive = 200
    teacher: Positive | None = None
    leave_out: list[str] = []


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
    evaluation: Evaluation = Evaluation()
    variants: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]*$")], Variant] = {}
    arms: Annotated[list[str], Field(min_length=1)] = ["base", "further", "brd"]

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

        check_arms(names, info.data.get("variants", {}))
        return names


def _all_known(kind: str, names: list[str], known: tuple[str, ...]) -> list[str]:
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {kind} {name!r}; {nearest(name, known)}")
    if len(set(names)) < len(names):
        raise ValueError(f"a {kind} is named twice")
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
    return _absolute(recipe, path.parent, {o.split("=", 1)[0].strip() for o in overrides or []})


def _check_variants(recipe: Recipe, path: Path) -> None:
    for name, variant in recipe.variants.items():
        try:
            changed(recipe, variant.set)
        except (ValueError, BrdError) as error:
            where = [".".join(map(str, e["loc"])) + ": " + e["msg"] for e in getattr(error, "errors", list)()]
            raise BrdError(f"{path}: variants.{name}: {(where or [str(error)])[0]}") from None


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
        branch = tree.setdefault(key, {})
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

    known = [anchor("reading.known", path) for path in recipe.reading.known]
    teacher, bundle = recipe.teacher, recipe.teacher.server.ca_bundle
    return changed(
        recipe,
        {
            "text.source": sources,
            "reading.known": known,
            # The names of a server's models are no paths here.
            "teacher.model": teacher.model if teacher.kind == "openai" else model("teacher.model", teacher.model),
            "teacher.server.ca_bundle": bundle and anchor("teacher.server.ca_bundle", bundle),
            "student.model": model("student.model", recipe.student.model),
            "evaluation.tasks": [task(name) for name in recipe.evaluation.tasks],
            **{f"evaluation.{key}": local(key) for key in ("cache", "gold_entities", "gold_answers")},
        },
    )
