"""What is known of a run's readings, what is left to ask, and what that takes."""

import os
import platform
from typing import Any

from brd.plan.asking import Measured, Question, most_at_once, reading, untimed
from brd.plan.corpus import Candidate, Corpus
from brd.plan.cost import SECONDS, prices, row
from brd.plan.timing import InProcess, Slots, doubling
from brd.reading.behavior import Behaviors
from brd.reading.known import known_to
from brd.reading.naming import Name, Names
from brd.reading.reader import teacher_hash
from brd.reading.store import Store
from brd.recipe import Recipe
from brd.recipe_corpus import corpus_parts
from brd.run import fingerprint
from brd.teachers.teacher import Teacher


class Left:
    """What a run has and has not of its readings, as its store says."""

    def __init__(self, recipe: Recipe, teacher: Teacher, behaviors: Behaviors, store: Store) -> None:
        self.names = Names(recipe, behaviors, teacher_hash(teacher))
        self._recipe, self._teacher = recipe, teacher
        self._store, self._paid = store, known_to(recipe, self.names, store.folder.parent)
        stored = store.shards() or any(store.last(name, lambda _: True, 1) for name in behaviors)
        self._any = bool(self._paid or stored)
        self._known: dict[str, float] = {name.label: 0.0 for name in self.names}

    def _is_known(self, name: Name, sentence: str) -> bool:
        if not self._any:
            return False
        key = name.key(sentence)
        return key in self._store or key in self._paid

    def saw(self, corpus: Corpus) -> None:
        if self._any:
            for name in self.names:
                known = (c for c in corpus.seen if is_asked(name, c) and self._is_known(name, c.text))
                self._known[name.label] = sum(c.weight for c in known)

    def questions(self, corpus: Corpus) -> list[Question]:
        """Those of the behaviors, about sentences that have no answer yet."""
        found = []
        for name in self.names:
            open_ = [c for c in corpus.pool if is_asked(name, c) and not self._is_known(name, c.text)]
            found.append(reading(self._recipe, self._teacher, self.names, name, open_, self._store))
        return found

    def distinct(self, corpus: Corpus) -> dict[str, float]:
        """Different sentences that each behavior is asked about."""
        languages = corpus.languages
        return {n.label: languages.get(n.language, 0.0) if n.language else corpus.distinct for n in self.names}

    def to_ask(self, corpus: Corpus, measured: Measured | None = None) -> dict[str, int]:
        """Sentences of each behavior that have no answer yet, after what was asked just now."""
        distinct = self.distinct(corpus)
        now = {name: len(measured.answers(name)) if measured else 0 for name in self._known}
        return {n: max(0, round(distinct[n] - known - now[n])) for n, known in self._known.items()}


def is_asked(name: Name, candidate: Candidate) -> bool:
    """Whether a sentence is in the language of a behavior's readings."""
    return name.language in ("", candidate.paragraph.language)


def mark(recipe: Recipe, names: Names) -> str:
    """Of all that a measured sample tells about: the teacher, how and from where it is asked, what it is asked."""
    return fingerprint(
        "calls",
        names.teacher,
        [name.prompt_hash for name in names],
        recipe.teacher.model_dump(exclude={"prices"}),
        *corpus_parts(recipe),
        [platform.node(), os.cpu_count()],
    )


def cost(
    recipe: Recipe,
    corpus: Corpus,
    distinct: dict[str, float],
    lengths: dict[str, float],
    measured: Measured,
    remaining: dict[str, int],
    asked_now: bool,
) -> dict[str, Any]:
    """What reading takes yet; each argument by the behaviors' labels."""
    timed = None if untimed(recipe) else timing(recipe, measured)
    # Of whole prompts servers say how much was in their cache; batches promise nothing of it.
    cache = recipe.teacher.named and not untimed(recipe)
    rows: dict[str, dict[str, Any]] = {}
    before, spent = 0, [corpus.seconds, corpus.seconds, corpus.seconds]
    for name, left in remaining.items():
        answers = measured.answers(name)
        # The first requests fill the server's cache.
        warm = measured.calls[name][-1] if cache and answers else None
        rows[name] = row(distinct[name], left, lengths[name], answers, asked_now, warm)
        if "tokens" in rows[name]:
            rows[name]["verified"] = round(sum(a.verified for a in answers) / len(answers), 4)
            if timed:
                takes = timed.predict(name, left, before)
                # More or fewer sentences than the estimate of the corpus take as much more or less.
                off = 2 * corpus.error * takes.seconds
                each = (takes.seconds, max(0.0, takes.low - off), takes.high + off)
                rows[name]["seconds"] = dict(zip(SECONDS, each, strict=True))
                spent = [s + t for s, t in zip(spent, each, strict=True)]
                before += left
    once = measured.start + timed.start if timed and any(remaining.values()) else 0.0
    total = dict(zip(SECONDS, (s + once for s in spent), strict=True))
    now = measured.all if asked_now else []
    return {
        "behaviors": rows,
        "asked_now": len(now),
        "counted": all(a.counted for a in measured.all),
        "at_once": most_at_once(recipe),
        "full": not timed or timed.full,
        "retries": sum(a.retries for a in measured.all),
        "seconds": None if untimed(recipe) else {"once": once, "text": corpus.seconds, **total},
        "untimed": untimed(recipe),
        "prices": prices(recipe.teacher.prices, rows.values(), now),
        "batch": recipe.teacher.kind == "openai" and recipe.teacher.server.batch,
    }


def timing(recipe: Recipe, measured: Measured) -> InProcess | Slots | None:
    """None where nothing was asked."""
    calls, most = measured.calls, most_at_once(recipe)
    if not calls:
        return None
    if recipe.teacher.kind == "openai":
        return Slots(calls, doubling(most), most, cold=False)
    if recipe.teacher.kind == "llamacpp":
        return Slots(calls, lambda _: most, most, cold=True)
    return InProcess(calls, most)
