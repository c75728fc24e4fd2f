"""The lessons of a run as they are, for other programs that train on text."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from brd.composing.documents import Lesson, check_separator, lessons
from brd.experiment import arm
from brd.reading.chosen import ReadParagraph
from brd.reading.export import Level, ReadRun
from brd.reading.reader import Readings
from brd.recipe import changed


class Lessons:
    """The lessons of arm ``brd``, or with other settings: of some ``behaviors`` only, at another ``level``, with what
    was not verified. Holds the run's readings in memory, as composing does.

    Raises BrdError where a reading is missing, and for a separator that stands inside readings.
    """

    def __init__(
        self, run: ReadRun, behaviors: tuple[str, ...], level: Level | None = None, verified_only: bool | None = None
    ) -> None:
        overrides: dict[str, Any] = dict(arm(run.recipe, "brd").overrides)
        overrides |= {f"composing.mix.{name}": 0.0 for name in run.recipe.reading.names if name not in behaviors}
        if level is not None:
            overrides["composing.level"] = level
        if verified_only is not None:
            overrides["composing.verified_only"] = verified_only
        self._recipe = changed(run.recipe, overrides)
        self._readings = Readings(self._recipe, run.readings)
        check_separator(self._recipe, self._readings)
        for paragraph in self._readings.paragraphs:
            for number in paragraph.readable:
                if any(self._missing(name, paragraph, number) for name in behaviors):
                    raise run.incomplete()

    def _missing(self, behavior: str, paragraph: ReadParagraph, number: int) -> bool:
        return self._readings.get(behavior, paragraph.sentence(number), paragraph.language) is None

    def records(self, held_out: bool, counts: Counter[str]) -> Iterator[dict[str, str]]:
        """One record a lesson; ``counts`` is told of lessons by their part and of readings."""
        for lesson in lessons(self._recipe, self._readings, held_out):
            yield self._record(lesson, counts)

    @staticmethod
    def _record(lesson: Lesson, counts: Counter[str]) -> dict[str, str]:
        counts[lesson.part] += 1
        counts["readings"] += len(lesson.answers)
        return {"text": lesson.text}
