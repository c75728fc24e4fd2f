"""The arms of an experiment: each is a kind of training data and a named override of the recipe.

``a+b`` is the arm ``b`` started from the student that ``a`` leaves, so that what BRD adds to another method is
``a+brd`` against ``a``, and what any further training adds is ``a+further``. Chains may be longer.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from brd.errors import BrdError, nearest

if TYPE_CHECKING:
    from brd.recipe import Recipe, Variant

Data = Literal["none", "original", "same", "lessons", "continuations", "answers", "labels", "relaxed"]
# Kinds of data that are made of the recipe's task inputs.
TASK_DATA: tuple[Data, ...] = ("answers", "labels", "relaxed")
# The arm whose lessons say how long every arm trains.
REFERENCE = "brd"
# What every arm starts from where the recipe heals the student first.
HEALED = "healed"
# Scored beside the arms where the recipe has it.
TEACHER = "teacher"


@dataclass(frozen=True, slots=True)
class Arm:
    """``data``: nothing (untrained), fresh original text, the original text that was read, lessons with readings, the
    teacher's continuations of text, its answers to task inputs, their labels, or lessons with answers (relaxed).

    ``after`` is the arm whose student this one starts from, where that is not the one all arms start from.
    """

    data: Data
    about: str
    overrides: dict[str, Any] = field(default_factory=dict)
    after: str | None = None


ARMS: dict[str, Arm] = {
    "base": Arm("none", "the student as every arm starts from it"),
    "further": Arm("original", "trained on as many tokens of original text, without readings (the paper's FURTHER)"),
    "further_same": Arm("same", "trained on as many tokens of the sentences that were read, without readings"),
    "brd": Arm("lessons", "trained on original text and the teacher's readings"),
    "no_ner": Arm("lessons", "brd without the named-entity readings", {"composing.mix.ner": 0.0}),
    "no_qra": Arm("lessons", "brd without the question-and-answer readings", {"composing.mix.qra": 0.0}),
    "brd_unverified": Arm("lessons", "brd with rejected readings too", {"composing.verified_only": False}),
    "brd_shuffled": Arm(
        "lessons", "brd with each reading given to another sentence", {"composing.shuffle_readings": True}
    ),
    "kd": Arm(
        "original",
        "trained on as many tokens of original text towards the teacher's distributions (the paper's SKD)",
        {"training.objective": "kd"},
    ),
    "gkd": Arm(
        "original",
        "trained towards the teacher's distributions where it goes on with original text itself (GKD)",
        {"training.objective": "gkd"},
    ),
    "minillm": Arm(
        "original",
        "trained to write what the teacher finds likely where it goes on with original text (MiniLLM)",
        {"training.objective": "minillm"},
    ),
    "seq_kd": Arm("continuations", "trained on the teacher's continuations of original text (sequence-level KD)"),
    "task_distillation": Arm("answers", "trained on task inputs with the teacher's answers (the paper's TD)"),
    "relaxed": Arm("relaxed", "trained on these, on brd's lessons, and on readings of task inputs (the paper's BRD2)"),
    "supervised": Arm("labels", "trained on task inputs with their labels (the paper's supervised setting)"),
}

_SEED = re.compile(r"(?P<name>.+)@(?P<seed>\d{1,9})")


def split_seed(name: str) -> tuple[str, int | None]:
    """``brd@1`` as ``("brd", 1)``, ``brd`` as ``("brd", None)`` (the recipe's own seed)."""
    match = _SEED.fullmatch(name)
    return (match["name"], int(match["seed"])) if match else (name, None)


def split_last(name: str) -> tuple[str | None, str]:
    """``kd+brd@1`` as ``("kd@1", "brd@1")``, ``brd@1`` as ``(None, "brd@1")``: whose student it starts from, and the
    arm that it is then. What an arm trains on is its last part's."""
    plain, seed = split_seed(name)
    first, _, last = plain.rpartition("+")
    mark = "" if seed is None else f"@{seed}"
    return (f"{first}{mark}" if first else None), f"{last}{mark}"


def arm(recipe: "Recipe", name: str) -> Arm:
    """An arm of a recipe by name, with all that it changes in the recipe."""
    after, last = split_last(name)
    if after is not None:
        found = arm(recipe, last)
        return replace(found, about=f"{found.about}; started from the student of {after}", after=after)
    plain, seed = split_seed(name)
    variant = recipe.variants.get(plain)
    found = ARMS[variant.arm if variant else plain]
    # A variant of no_ner stays without it, whatever mix it sets.
    overrides = {**(variant.set if variant else {}), **found.overrides}
    if seed is not None:
        overrides["seed"] = seed
    about = (variant.about if variant else "") or found.about
    if variant and not variant.about:
        about += f", with {', '.join(f'{key} {value}' for key, value in variant.set.items())}"
    return Arm(found.data, about + (f" (seed {seed})" if seed is not None else ""), overrides)


def chain(name: str) -> list[str]:
    """The arms that are trained for an arm, in order: ``["kd@1", "kd+brd@1"]`` for ``kd+brd@1``."""
    after, _ = split_last(name)
    return [*(chain(after) if after else []), name]


def check_objectives(recipe: "Recipe") -> None:
    """BrdError for an arm whose objective asks for what the recipe does not have."""
    from brd.recipe import changed

    for name in dict.fromkeys(part for arm_name in recipe.arms for part in chain(arm_name)):
        own = changed(recipe, arm(recipe, name).overrides)
        objective, settings, kind = own.training.objective, own.distillation, own.teacher.kind
        if objective == "lm" or arm(recipe, name).data == "none":
            continue
        if settings.teacher_model is None and kind != "shared_prefix":
            raise BrdError(
                f"distillation.teacher_model: a teacher of kind {kind} gives text and no distributions over its "
                f"vocabulary, which the arm {name} learns from; name a model folder or a Hub name here"
            )
        if objective != "kd" and own.training.attention == "document":
            # What is written there may end a document and begin another, which only one who saw it come would tell.
            raise BrdError(
                f"training.attention: the arm {name} goes on with the beginning of a row, whatever documents are in "
                f"it, and cannot keep them apart; use row, for it alone by a variant ({{arm: {objective}, set: "
                f"{{training.attention: row}}}})"
            )
        longest, row = settings.prompt_tokens + settings.new_tokens, own.composing.row_tokens
        if objective != "kd" and longest > row:
            raise BrdError(
                f"distillation.prompt_tokens, distillation.new_tokens: {settings.prompt_tokens} and "
                f"{settings.new_tokens} are more than a row has (composing.row_tokens, {row}); the arm {name} goes on "
                f"with the beginning of a row"
            )


def check_task_inputs(recipe: "Recipe") -> None:
    """BrdError for an arm that learns from task inputs where the recipe names none."""
    from brd.recipe import changed

    for name in dict.fromkeys(part for arm_name in recipe.arms for part in chain(arm_name)):
        found = arm(recipe, name)
        if found.data in TASK_DATA and not changed(recipe, found.overrides).task_data.inputs:
            raise BrdError(
                f"task_data.inputs: the arm {name} learns from task inputs, and there are none; name a training "
                f"split of each task, such as {{sst2: sst2_train.jsonl}}"
            )


def seeds(recipe: "Recipe") -> dict[str, list[str]]:
    """The arms of a recipe by name without their seeds, in order: ``{"brd": ["brd", "brd@1", "brd@2"]}``."""
    found: dict[str, list[str]] = {}
    for name in recipe.arms:
        found.setdefault(split_seed(name)[0], []).append(name)
    return found


# Other names of a run folder's.
_RESERVED = ("healed", "healing", "held_out", "layers", "teacher")
# What an arm may change alone; everything else is the run's.
_ARMS_OWN = ("composing.", "training.", "distillation.", "task_data.")
_RUNS_OWN = ("composing.row_tokens", "composing.packing", "composing.separator", "composing.separator_as_token")


def check_variants(variants: Mapping[str, "Variant"]) -> None:
    """ValueError for a variant that cannot be."""
    for name, variant in variants.items():
        if name in ARMS:
            raise ValueError(f"{name!r} is a known arm; give the variant another name")
        if name in _RESERVED:
            raise ValueError(f"{name!r} names something else in a run folder; give the variant another name")
        if variant.arm not in ARMS:
            raise ValueError(f"{name}: unknown arm {variant.arm!r}; {nearest(variant.arm, tuple(ARMS))}")
        for key in variant.set:
            if not key.startswith(_ARMS_OWN) or key in _RUNS_OWN:
                raise ValueError(f"{name}: {key} is the same for all arms of a run; set it in a run of its own")


def check_arms(names: Sequence[str], variants: Mapping[str, "Variant"]) -> None:
    """ValueError for an arm that there is not, or one that is named twice."""
    known = (*ARMS, *variants)
    for name in names:
        parts = split_seed(name)[0].split("+")
        for part in parts:
            if part not in known:
                raise ValueError(f"unknown arm {part!r}; {nearest(part, known)}")
            if len(parts) > 1 and ARMS[variants[part].arm if part in variants else part].data == "none":
                raise ValueError(f"{name}: {part} trains nothing, so it has no place in a chain of arms")
    if len(set(names)) < len(names):
        raise ValueError("an arm is named twice")


def reads(recipe: "Recipe", arm: str) -> bool:
    """Whether an arm's reading is tested; the teacher's always is, against gold."""
    chosen = recipe.evaluation.reading_arms
    return arm == TEACHER or chosen is None or arm in chosen
