"""The sections ``student``, ``healing`` and ``training`` of a recipe."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from brd.embedded import MODEL_NAME
from brd.sections.section import Dtype, Positive, Section, Share

# Keys of ``Training`` that change how it is done, not what comes out.
RESULT_FREE = {
    "save_steps",
    "activation_checkpointing",
    "parallel",
    "processes",
    "evaluate_steps",
    "divergence",
    "report_to",
}
# Keys that did not exist in earlier versions.
LATER = {"attention", "objective"}


class Lora(Section):
    """Low-rank adapters in the student's linear layers, which alone are trained (package peft).

    A product with a weight gets ``alpha / rank`` times that of two matrices of ``rank``. ``targets`` are ends of
    modules' names; null takes all linear layers but the output's.
    """

    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Annotated[list[str], Field(min_length=1)] | None = None


class Student(Section):
    """Who learns: ``layers`` keeps only the transformer layers with these numbers, ``keep_layers`` so many of those
    that do most (all where both are null).

    ``dropout`` replaces every dropout rate of the student's own config, which hold where it is null. With ``lora`` the
    arms train adapters, which are merged when the student is saved.
    """

    model: str = MODEL_NAME
    layers: list[Annotated[int, Field(ge=0)]] | None = None
    keep_layers: Positive | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    lora: Lora | None = None
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _one_way_to_cut(self) -> "Student":
        if self.layers is not None and self.keep_layers is not None:
            raise ValueError("student.layers and student.keep_layers both say which layers are kept; give one of them")
        return self

    def starting(self) -> dict[str, Any]:
        """The keys that say what every arm starts from; of the later ones only those that are used, so that
        fingerprints of other recipes stay as they were."""
        kept = self.model_dump(exclude={"lora"})
        return {key: value for key, value in kept.items() if value is not None or key == "layers"}


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
    """Training of each arm: the same steps, tokens and schedule for all.

    ``objective`` lm is the plain causal LM loss; the others, of the arms kd, gkd and minillm, are towards a teacher's
    distributions, with the keys of the section ``distillation``.
    ``attention``: a token sees the ``row`` before it, or only its own ``document``.
    ``compile`` has torch compile the layers first, which takes a C++ compiler and some seconds.
    ``activation_checkpointing`` keeps a layer's input only and computes the rest anew for the gradients. ``processes``
    (``auto``: one for each accelerator) train together, by ``parallel``: ``ddp`` holds all weights in each, ``fsdp``
    shards them; ``none`` is one process. ``divergence`` stops a training whose loss is so many times its median for
    10 steps in a row (null: never). ``evaluate_steps`` is how often the loss on held-out text is taken (0: never).
    """

    objective: Literal["lm", "kd", "gkd", "minillm"] = "lm"
    epochs: Annotated[float, Field(gt=0, le=1000)] = 1.0
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-5
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Share = 0.1
    weight_decay: Share = 0.01
    rows_per_step: Positive = 4
    micro_rows: Positive = 4
    attention: Literal["row", "document"] = "row"
    dtype: Dtype = "auto"
    compile: bool = False
    save_steps: Positive = 100
    activation_checkpointing: bool = False
    parallel: Literal["none", "ddp", "fsdp"] = "ddp"
    processes: Literal["auto"] | Positive = "auto"
    evaluate_steps: Annotated[int, Field(ge=0)] = 0
    divergence: Annotated[float, Field(ge=1.2)] | None = 2.0
    report_to: Literal["none", "trackio", "wandb", "tensorboard"] = "none"

    def deciding(self) -> dict[str, Any]:
        """The keys that a result rests on. One that came later stands there only where it is not at its default, so
        that what was trained before it is still current."""
        later = {key for key in LATER if getattr(self, key) == type(self).model_fields[key].default}
        found = self.model_dump(exclude=RESULT_FREE | later)
        if self.attention == "document":
            # There was a version that left them in sight of each other; what it trained is not current.
            found["kept_apart"] = True
        return found

    @field_validator("micro_rows")
    @classmethod
    def _divides(cls, rows: int, info: Any) -> int:
        if info.data.get("rows_per_step", rows) % rows:
            raise ValueError("must divide training.rows_per_step")
        return rows
