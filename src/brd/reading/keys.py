"""Under which keys a recipe's readings lie in the store: by behavior, language and sentence."""

import json
from collections.abc import Callable
from pathlib import Path

from brd.reading.behavior import Behavior, Behaviors, prompt_hash
from brd.reading.store import Reading, reading_key
from brd.recipe import Recipe


class Keys:
    """Of the teacher that read into a folder, asked as the recipe says."""

    def __init__(self, recipe: Recipe, folder: Path, behaviors: Behaviors) -> None:
        self.teacher: str = json.loads((folder / "teacher.json").read_text())["hash"]
        self._behaviors = behaviors
        self._parts: dict[tuple[str, str], tuple[str, str, int]] = {}
        self._languages: dict[tuple[str, str], str] = {}
        for name in behaviors:
            for code, behavior in behaviors.each(name).items():
                prompt, limit = prompt_hash(behavior), min(behavior.max_new_tokens, recipe.teacher.max_new_tokens)
                self._parts[name, code] = (self.teacher, prompt, limit)
                self._languages[name, prompt] = code

    def of(self, behavior: str, language: str, sentence: str) -> str:
        """The key of a behavior's reading of a sentence in a language."""
        return reading_key(*self._parts[behavior, language if self._behaviors.languages else ""], sentence)

    def asked_in(self, reading: Reading) -> str | None:
        """The language that a reading was asked in (empty where all are asked alike); None where it is of another
        teacher, prompt or limit."""
        code = self._languages.get((reading.behavior, reading.prompt_hash))
        if code is None or reading.key != self.of(reading.behavior, code, reading.text):
            return None
        return code


def judges(behaviors: Behaviors) -> Callable[[Reading], Behavior | None]:
    """Finds the behavior that judges a reading: the one that asks with its prompt, else (an older prompt) that of its
    name in the first language; None for a behavior that is not among these."""
    asked = {(name, prompt_hash(b)): b for name in behaviors for b in behaviors.each(name).values()}
    return lambda reading: asked.get((reading.behavior, reading.prompt_hash), behaviors.get(reading.behavior))
