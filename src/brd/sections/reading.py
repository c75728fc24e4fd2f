"""The section ``reading`` of a recipe."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from brd.reading.behavior import BEHAVIORS, behavior_name, is_own
from brd.reading.languages import known_languages, language_code
from brd.sections.section import Positive, Section, Share, all_known

# In ``known``: the run folders beside this one.
SIBLINGS = "siblings"


class Reading(Section):
    """What is read: how many sentences of the training and of the held-out documents, by which behaviors.

    ``behaviors`` are names, or Python files of one's own (``my/tone.py`` is the behavior ``tone``). With ``languages``
    a sentence is asked in its own language, and those in others are left out; without, all are asked in English.
    ``known`` names what was paid for elsewhere and is not asked again: Parquet files of readings (``brd export``), run
    folders and folders of these; ``siblings`` are the run folders beside this one.
    Reading stops where less than ``floor`` of a behavior's last ``floor_window`` answers are verified (never: null).
    """

    behaviors: Annotated[list[str], Field(min_length=1)] = ["ner", "qra"]
    exemplars: Literal["plain", "instruct"] = "plain"
    languages: Annotated[list[str], Field(min_length=1)] | None = None
    sentences: Positive = 1000
    held_out_sentences: Positive = 100
    drop_bad_entities: bool = True
    shard_rows: Positive = 5000
    known: list[str] = [SIBLINGS]
    floor: Share | None = None
    floor_window: Positive = 500

    @field_validator("behaviors")
    @classmethod
    def _known(cls, entries: list[str]) -> list[str]:
        all_known("behavior", [entry for entry in entries if not is_own(entry)], tuple(BEHAVIORS))
        for entry in filter(is_own, entries):
            name = behavior_name(entry)
            if not re.fullmatch("[a-z][a-z0-9_]*", name):
                raise ValueError(f"{entry}: a behavior's file should be named in small letters, such as tone.py")
            if name in BEHAVIORS or name == "original":
                raise ValueError(f"{entry}: {name!r} names something of ours; give the file another name")
        all_known("behavior", names := list(map(behavior_name, entries)), tuple(names))
        return entries

    @field_validator("languages")
    @classmethod
    def _spoken(cls, tags: list[str] | None) -> list[str] | None:
        return None if tags is None else all_known("language", list(map(language_code, tags)), known_languages())

    @property
    def names(self) -> list[str]:
        """The names of the behaviors, those of files too."""
        return list(map(behavior_name, self.behaviors))

    def asking(self) -> dict[str, Any]:
        """The keys that can change what is asked or what is made of it, for fingerprints; files by their names, and
        keys that older recipes did not have only where they are used."""
        unused = {"languages"} if self.languages is None else set()
        kept = self.model_dump(exclude={"shard_rows", "known", "floor", "floor_window"} | unused)
        return {**kept, "behaviors": self.names}
