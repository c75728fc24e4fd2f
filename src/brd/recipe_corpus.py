"""The corpus of a recipe with what the recipe says outside of ``text``: the tests that it is to be free of."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from brd.recipe import Recipe
from brd.text.corpus import Corpus


def open_corpus(recipe: Recipe, record: Path | None = None) -> Corpus:
    """The filtered corpus; what the filters decide is written to ``record``."""

    def tests() -> Iterable[tuple[str, tuple[str, ...]]]:
        from brd.evaluation.contamination import task_texts

        return task_texts(recipe.evaluation.tasks)

    return Corpus(recipe.text, tests, record)


def corpus_parts(recipe: Recipe) -> list[Any]:
    """What changes when the corpus does, for fingerprints: keys, content of the sources, and of the tests and the
    spared paragraphs where a filter looks at them."""
    from brd.text import sources
    from brd.text.lines import content_hash

    text = recipe.text
    keys = text.deciding()
    if text.filters.spare and text.filters.on():
        keys["spare"] = content_hash(Path(text.filters.spare))
    if text.filters.decontaminate:
        from brd.evaluation.records import stamp
        from brd.evaluation.tasks import load_task

        tasks = {task.name: task.source for task in map(load_task, recipe.evaluation.tasks)}
        keys["tests"] = {name: stamp(source) or source.model_dump() for name, source in tasks.items()}
    return [keys, sources.fingerprint(text)]
