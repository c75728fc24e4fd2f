"""The sections ``student``, ``healing`` and ``training`` of a recipe."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from brd.embedded import MODEL_NAME
from brd.sections.section import Dtype, Positive, Section, Share


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
