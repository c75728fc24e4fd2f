"""The section ``composing`` of a recipe."""

from typing import Annotated, Literal

from pydantic import Field

from brd.sections.section import Positive, Section


class Composing(Section):
    """Lessons. ``mix`` says how many times ``original`` (D_ORI) and each behavior's lessons are taken (1 unless said).

    ``separator_as_token`` makes the separator one new token, which changes the student's vocabulary.
    ``shuffle_readings`` gives every sentence the reading of another one: the form without the reading.
    ``sentences`` takes only the first so many of the sentences that were read (in whole paragraphs).
    ``packing``: ``stream`` cuts lessons at row ends; ``best_fit`` keeps each whole in one row, which padding may end.
    """

    level: Literal["paragraph", "sentence"] = "paragraph"
    separator: Annotated[str, Field(min_length=1)] = "\n\n"
    separator_as_token: bool = False
    verified_only: bool = True
    shuffle_readings: bool = False
    sentences: Positive | None = None
    mix: dict[str, Annotated[float, Field(ge=0, le=100)]] = {}
    row_tokens: Annotated[int, Field(ge=8, le=131072)] = 512
    packing: Literal["stream", "best_fit"] = "stream"

    def weight(self, part: str) -> float:
        return self.mix.get(part, 1.0)
