"""The arms of an experiment: each is a kind of training data and a named override of the recipe."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Arm:
    """``data``: nothing (untrained), original text only, or lessons with readings."""

    data: Literal["none", "original", "lessons"]
    about: str
    overrides: dict[str, Any] = field(default_factory=dict)


ARMS: dict[str, Arm] = {
    "base": Arm("none", "the student as it is, untrained"),
    "further": Arm("original", "trained on as many tokens of original text, without readings (the paper's FURTHER)"),
    "brd": Arm("lessons", "trained on original text and the teacher's readings"),
    "no_ner": Arm("lessons", "brd without the named-entity readings", {"composing.mix.ner": 0.0}),
    "no_qra": Arm("lessons", "brd without the question-and-answer readings", {"composing.mix.qra": 0.0}),
    "brd_unverified": Arm("lessons", "brd with rejected readings too", {"composing.verified_only": False}),
}
