"""The section ``distillation`` of a recipe."""

from typing import Annotated, Any

from pydantic import Field

from brd.sections.section import Dtype, Positive, Section, Share

# Which keys count for which objective; the others cannot change what it trains.
_SHARED = {"teacher_dtype"}
_OF: dict[str, set[str]] = {
    "kd": {"weight", "temperature", "top", "drawn"},
    "gkd": {"prompt_tokens", "new_tokens", "on_policy", "beta"},
    "minillm": {"prompt_tokens", "new_tokens", "teacher_share"},
}


class Distillation(Section):
    """Training towards a teacher's distributions, by arms whose ``training.objective`` is not lm.

    ``teacher_model`` null is the recipe's teacher, where that is a model of transformers. ``weight`` is the share of
    the teacher in the loss of ``kd``, ``temperature`` that of both distributions; ``top`` and ``drawn`` tokens are kept
    of the teacher's. ``gkd`` and ``minillm`` go on with the first ``prompt_tokens`` of a row for ``new_tokens``: gkd in
    a share ``on_policy`` of the batches, ``beta`` being that of its divergence; minillm draws from a mixture of
    student and teacher, with a ``teacher_share`` of the teacher. In the arm ``seq_kd``, of the plain loss, the teacher
    goes on with at most about ``prompt_tokens`` of a paragraph for at most ``new_tokens``.
    """

    teacher_model: str | None = None
    teacher_dtype: Dtype = "auto"
    weight: Share = 0.5
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    top: Positive = 20
    drawn: Annotated[int, Field(ge=0)] = 12
    prompt_tokens: Positive = 64
    new_tokens: Positive = 64
    on_policy: Share = 0.5
    beta: Share = 0.5
    teacher_share: Annotated[float, Field(ge=0, lt=1)] = 0.2

    def deciding(self, objective: str) -> dict[str, Any]:
        """The keys that can change what is trained by an objective, for fingerprints; the teacher's name apart."""
        return self.model_dump(include=_SHARED | _OF[objective])
