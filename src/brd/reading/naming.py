"""Under which keys a recipe's readings lie in the store: by behavior, language and sentence."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from brd.reading.behavior import Behavior, Behaviors, prompt_hash
from brd.reading.store import Reading, reading_key
from brd.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Name:
    """What a key is made of beside the sentence: of one behavior, asked in one language (empty: in English, whatever
    the sentence is in)."""

    behavior: str
    language: str
    teacher: str
    prompt_hash: str
    max_new_tokens: int

    @property
    def label(self) -> str:
        """For people: ``ner``, or ``ner (de)`` where it is asked by language."""
        return f"{self.behavior} ({self.language})" if self.language else self.behavior

    def key(self, sentence: str) -> str:
        return reading_key(self.teacher, self.prompt_hash, self.max_new_tokens, sentence)


class Names:
    """The names of a recipe's readings by a teacher, which is given by the hash of its identity. Iterating goes through
    the behaviors in their order, and their languages; what is of one name shares its prompt."""

    def __init__(self, recipe: Recipe, behaviors: Behaviors, teacher: str) -> None:
        self.teacher, self.behaviors = teacher, behaviors
        self._names = {
            (name, code): Name(
                name, code, teacher, prompt_hash(behavior), min(behavior.max_new_tokens, recipe.teacher.max_new_tokens)
            )
            for name in behaviors
            for code, behavior in behaviors.each(name).items()
        }
        self._prompts = {(name.behavior, name.prompt_hash): name for name in self._names.values()}

    def __iter__(self) -> Iterator[Name]:
        return iter(self._names.values())

    def behavior_of(self, name: Name) -> Behavior:
        return self.behaviors.of(name.behavior, name.language)

    def of(self, behavior: str, language: str) -> Name:
        """The name of a behavior's readings of sentences in a language (a code)."""
        return self._names[behavior, language if self.behaviors.languages else ""]

    def named(self, reading: Reading) -> Name | None:
        """The name of a stored reading; None where it is of another teacher, prompt or limit."""
        name = self._prompts.get((reading.behavior, reading.prompt_hash))
        return name if name and name.key(reading.text) == reading.key else None


def names_in(recipe: Recipe, folder: Path, behaviors: Behaviors) -> Names:
    """The names of the readings in a folder: those of the teacher that read into it."""
    return Names(recipe, behaviors, json.loads((folder / "teacher.json").read_text())["hash"])


def judges(behaviors: Behaviors) -> Callable[[Reading], Behavior]:
    """Finds the behavior that judges a reading of one of ``behaviors``: the one that asks with its prompt, else (an
    older prompt) that of its name in the first language."""
    asked = {(name, prompt_hash(b)): b for name in behaviors for b in behaviors.each(name).values()}
    return lambda reading: asked.get((reading.behavior, reading.prompt_hash)) or behaviors[reading.behavior]
