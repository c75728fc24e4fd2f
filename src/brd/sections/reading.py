"""The section ``reading`` of a recipe."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from brd.reading.behavior import BEHAVIORS
from brd.sections.section import Positive, Section, Share, all_known


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
        return all_known("behavior", names, tuple(BEHAVIORS))
