"""What a recipe asks that is not known yet, as questions on their own, and answers to them back into the store.

``reader.read`` hands sentences to the teacher and waits for it. Who takes hours, elsewhere (a cluster, the batches of a
provider), gets the questions written down first; what comes back goes into the same store under the same keys.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from brd.reading.behavior import behaviors_of
from brd.reading.chosen import check_parts, choose
from brd.reading.floor import Floor
from brd.reading.known import known_to
from brd.reading.naming import Names
from brd.reading.parquet import read_table, write_table
from brd.reading.store import SCHEMA, Reading, Store, judged
from brd.recipe import Recipe
from brd.teachers.teacher import Answer, Prompt
from brd.text.corpus import Corpus


@dataclass(frozen=True, slots=True)
class Question:
    """A sentence for a behavior. What is asked is the prefix of its prompt, which is found by ``prompt_hash``, and
    ``suffix``. The place is as in ``Reading``."""

    key: str
    behavior: str
    prompt_hash: str
    document: str
    paragraph: int
    sentence: int
    start: int
    end: int
    text: str
    suffix: str


_NAMES = [field.name for field in fields(Question)]
_FILE = pa.schema(
    [*(SCHEMA.field(name) for name in _NAMES if name != "suffix"), ("suffix", pa.string()), ("shard", pa.string())]
)


def save_questions(questions: list[Question], path: Path) -> None:
    """Write questions as Parquet, whole or not at all; a column ``shard`` names the file."""
    columns: dict[str, list[Any]] = {name: [getattr(q, name) for q in questions] for name in _NAMES}
    write_table(pa.table({**columns, "shard": [path.stem] * len(questions)}, schema=_FILE), path)


def load_questions(path: Path) -> list[Question]:
    return [Question(**row) for row in read_table(path, _NAMES).to_pylist()]


def question_keys(paths: Iterable[Path]) -> set[str]:
    return {key for path in paths for key in read_table(path, ["key"])["key"].to_pylist()}


def prompts(recipe: Recipe) -> dict[str, Prompt]:
    """The prompts of a recipe's behaviors in the languages that they ask in, by their hashes."""
    names = Names(recipe, behaviors_of(recipe.reading), "")
    asked = ((name, names.behavior_of(name)) for name in names)
    return {name.prompt_hash: Prompt(b.prefix, tuple(b.stop), name.max_new_tokens) for name, b in asked}


def questions(
    recipe: Recipe,
    teacher: str,
    store: Store | None = None,
    there: Collection[str] = (),
    corpus: Corpus | None = None,
) -> Iterator[Question]:
    """The questions whose keys are neither in the store of the run, nor ``there``, nor known by ``reading.known``, each
    once, in the order of the corpus.

    ``teacher`` is the hash of the teacher's identity. Raises BrdError at the end when a part has no sentence.
    """
    counts: Counter[str] = Counter()
    names = Names(recipe, behaviors_of(recipe.reading), teacher)
    known = known_to(recipe, names, store.folder.parent if store else None)
    # Half of a key tells ten million of them apart, and a set of integers is a third of one of strings.
    asked: set[int] = set()
    for paragraph in choose(recipe, counts, corpus):
        for number in paragraph.readable:
            text, span = paragraph.sentence(number), paragraph.spans[number]
            for behavior in names.behaviors:
                name = names.of(behavior, paragraph.language)
                key = name.key(text)
                short = int(key[:16], 16)
                if short in asked or key in there or (store and key in store) or key in known:
                    continue
                asked.add(short)
                place = (paragraph.document, paragraph.index, number, span.start, span.end)
                suffix = names.behavior_of(name).suffix(text)
                yield Question(key, behavior, name.prompt_hash, *place, text, suffix)
    check_parts(recipe, counts)


class Intake:
    """Judges answers and puts them into an open store; ``counts`` are those of the read step."""

    def __init__(self, recipe: Recipe, teacher: str, store: Store) -> None:
        self.counts: Counter[str] = Counter()
        self._recipe, self._teacher, self._store = recipe, teacher, store
        names, run = Names(recipe, behaviors_of(recipe.reading), teacher), store.folder.parent
        self._behaviors = {name.prompt_hash: names.behavior_of(name) for name in names}
        self._floors = {name.prompt_hash: Floor(recipe.reading, name.label, run) for name in names}

    def take(self, answered: Iterable[tuple[Question, Answer]]) -> int:
        """Store what is not there yet; returns how many that were. Raises BrdError at ``reading.floor``, when what
        was given is stored."""
        readings: list[Reading] = []
        keys: set[str] = set()
        for question, answer in answered:
            if question.key in self._store or question.key in keys:
                continue
            keys.add(question.key)
            readings.append(self._reading(question, answer))
            self.counts[f"{question.behavior}_asked"] += 1
            self.counts["prompt_tokens"] += answer.prompt_tokens
            self.counts["new_tokens"] += answer.new_tokens
            self.counts["cached_tokens"] += answer.cached_tokens
        self._store.append(readings)
        for reading in readings:
            self._floors[reading.prompt_hash].saw(reading)
        return len(readings)

    def _reading(self, question: Question, answer: Answer) -> Reading:
        drop = self._recipe.reading.drop_bad_entities
        behavior = self._behaviors[question.prompt_hash]
        return Reading(
            key=question.key,
            document=question.document,
            paragraph=question.paragraph,
            sentence=question.sentence,
            start=question.start,
            end=question.end,
            text=question.text,
            behavior=question.behavior,
            raw=answer.text,
            finished=answer.finished,
            teacher=self._teacher,
            prompt_hash=question.prompt_hash,
            prompt_tokens=answer.prompt_tokens,
            new_tokens=answer.new_tokens,
            **judged(behavior.judge(answer.text, question.text, finished=answer.finished, drop_bad_parts=drop)),
        )
