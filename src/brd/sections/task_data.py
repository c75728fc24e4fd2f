"""The section ``task_data`` of a recipe."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from brd.evaluation.records import Source
from brd.sections.section import Positive, Section

Part = Literal["lessons", "answers", "inputs"]


class TaskData(Section):
    """Inputs of tasks for the arms that learn from them: task_distillation, relaxed, supervised.

    ``inputs`` names a task's records, which have the fields of its test set: a file, or a mapping such as a task's key
    ``source``. What is tested is left out of them (``evaluation.tested``). ``templates`` as ``evaluation.templates``,
    and the same where null. ``limit`` takes so many records of each task, by their hashes. ``mix`` says how many times
    the arm relaxed takes its ``lessons`` on generic text, the teacher's ``answers`` to the inputs, and the lessons on
    the ``inputs`` themselves (1 unless said).
    """

    inputs: dict[str, str | dict[str, Any]] = {}
    templates: str | None = None
    limit: Positive | None = None
    mix: dict[Part, Annotated[float, Field(ge=0, le=100)]] = {}

    @field_validator("inputs")
    @classmethod
    def _sources(cls, inputs: dict[str, str | dict[str, Any]]) -> dict[str, str | dict[str, Any]]:
        for given in inputs.values():
            source_of(given)
        return inputs

    def weight(self, part: Part) -> float:
        return self.mix.get(part, 1.0)


def source_of(given: str | dict[str, Any]) -> Source:
    """Where the records of an entry of ``inputs`` come from."""
    return Source.model_validate({"file": given} if isinstance(given, str) else given)
