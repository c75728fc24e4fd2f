"""``brd check-int8``: the same sentences read in the full dtype and in int8, what that loses, and what it wins."""

import gc
import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brd import hardware
from brd.console import Console
from brd.errors import BrdError
from brd.evaluation.evaluate import rounded
from brd.evaluation.gold import GoldEntities, entity_parts, load_entities
from brd.evaluation.statistics import Floats, draw_counts, percentile_interval
from brd.reading.behavior import Behavior, behaviors_of
from brd.reading.chosen import ReadParagraph, choose
from brd.reading.naming import Name, Names
from brd.reading.reader import reading_of, teacher_hash
from brd.reading.store import Reading, Store, load
from brd.recipe import Recipe
from brd.recipe_corpus import open_corpus
from brd.recipe_teacher import begun_in
from brd.run import RunFolder, write_json
from brd.teachers import int8_record, open_teacher
from brd.text.sentences import Span

FILE = "int8.json"
# Readings of annotated sentences, apart from those of the corpus.
GOLD_FOLDER = "int8_gold"
# Figures of fewer sentences are printed, but do not count as a check.
LEAST = 200
# Fewer readings tell no rate: the shared prompt and the last rows, which run alone, weigh too much.
RATED = 100
# What int8 may lose of a share, or of an F1.
MOST_LOSS = 0.01
LOSSES = ("verified", "entity_f1")

Place = tuple[ReadParagraph, int]


@dataclass(frozen=True, slots=True)
class Loss:
    """A figure of the same ``n`` sentences in both dtypes, shares from 0 to 1. ``loss`` is full less int8, ``low`` and
    ``high`` its 95 % interval (paired bootstrap over sentences; None where it cannot be taken); ``differ`` counts the
    sentences that are not told alike."""

    n: int
    full: float
    int8: float
    loss: float
    low: float | None
    high: float | None
    differ: int

    @property
    def passed(self) -> bool:
        return self.n >= LEAST and self.loss < MOST_LOSS


def verified_loss(full: Sequence[bool], int8: Sequence[bool]) -> Loss:
    """Of the shares of verified readings."""
    a, b = np.array(full, dtype=np.float64), np.array(int8, dtype=np.float64)
    n, differences = len(a), a - b
    if differences.any():
        drawn = np.concatenate([counts @ differences for counts in draw_counts(n, seed=0)]) / n
        low, high = percentile_interval(drawn)
    else:
        # Resampling what is all alike says nothing; none of n means less than 3/n, at 95 %.
        low, high = -3 / n, 3 / n
    shares = float(a.mean()), float(b.mean())
    return Loss(n, *shares, float(differences.mean()), low, high, int((a != b).sum()))


def f1_loss(full: Floats, int8: Floats) -> Loss | None:
    """Of micro F1, from ``entity_parts`` of both; None where nothing is marked and nothing written."""

    def f1(counts: Floats, parts: Floats) -> Floats:
        above, below = (counts @ parts).T
        ratio: Floats = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
        return ratio

    every = np.ones((1, len(full)))
    if not (full[:, 1].any() and int8[:, 1].any()):
        return None
    a, b = float(f1(every, full)[0]), float(f1(every, int8)[0])
    differ = int((full != int8).any(axis=1).sum())
    low = high = None
    if differ:
        drawn = [f1(counts, full) - f1(counts, int8) for counts in draw_counts(len(full), seed=0)]
        low, high = percentile_interval(np.concatenate(drawn))
    return Loss(len(full), a, b, a - b, low, high, differ)


def check(
    recipe: Recipe,
    run: RunFolder,
    console: Console,
    *,
    sentences: int,
    entities: Path | None = None,
    anyway: bool = False,
) -> dict[str, Any]:
    """Read ``sentences`` of each language in both dtypes, and as many annotated ones of the file ``entities``; put what
    was found on record and into int8.json of the run folder.

    The readings of the corpus lie in the run's store, so that a run that then reads in either dtype has them already,
    and an interrupted check goes on. Where int8 is not faster here nothing is asked, unless ``anyway``. Raises BrdError
    where the corpus or the file has fewer than ``LEAST`` sentences, and what teacher and corpus raise.
    """
    from brd.inference.speed import layers_of, linear_seconds

    if recipe.teacher.kind != "shared_prefix":
        raise BrdError(f"teacher.kind is {recipe.teacher.kind}; only shared_prefix has an int8 of this kind")
    if hardware.device().type != "cpu":
        raise BrdError(f"int8 runs on the CPU only, and this machine has {hardware.device().type}: nothing to check")
    gold = _annotated(recipe, entities, sentences)
    places = _sample(recipe, sentences)
    full = int8_record.full_dtype()
    teacher: Any = open_teacher(recipe.teacher.model_copy(update={"dtype": "int8"}))
    found: dict[str, Any] = {
        "weights": teacher.identity()["model"],
        "dtype": full,
        "layers": layers_of(teacher.model),
        "fallback": teacher.fallback,
        "processor": hardware.processor(),
        "began_in": begun_in(recipe.teacher, run.path / "readings"),
        "gold": gold.file if gold else None,
        "rates": {},
        "prompts": {},
    }
    found |= {"linear_seconds": linear_seconds(found["layers"]), "faster": int8_record.faster(found)}
    if anyway or (found["faster"] >= hardware.FASTER and not teacher.fallback):
        reader = _Reader(recipe, run.path, console)
        in_int8 = reader.read(teacher, places, gold)
        teacher.close()
        del teacher
        # One model in memory at a time.
        gc.collect()
        teacher = open_teacher(recipe.teacher.model_copy(update={"dtype": full}))
        in_full = reader.read(teacher, places, gold)
        _record(recipe, in_full, in_int8, gold, found)
        found["faster"] = int8_record.faster(found)
    teacher.close()
    found["passed"] = bool(found["prompts"]) and all(one["passed"] for one in found["prompts"].values())
    write_json(run.path / FILE, rounded(found))
    return found


@dataclass(frozen=True, slots=True)
class _Gold:
    file: str
    items: list[GoldEntities]

    def places(self) -> list[Place]:
        spans = [(item.sentence, (Span(0, len(item.sentence)),)) for item in self.items]
        return [(ReadParagraph(self.file, n, text, True, span, (0,)), 0) for n, (text, span) in enumerate(spans)]


@dataclass(frozen=True, slots=True)
class _Read:
    """What was read in one dtype, by sentence: of the corpus for each name, and of annotated sentences. ``rate`` is of
    readings a second; None where too few were asked to tell."""

    readings: dict[Name, dict[str, Reading]]
    gold: dict[str, Reading]
    rate: float | None


class _Reader:
    """Has sentences read that are not in the store yet."""

    def __init__(self, recipe: Recipe, folder: Path, console: Console) -> None:
        self._recipe, self._folder, self._console = recipe, folder, console
        self._behaviors = behaviors_of(recipe.reading)

    def read(self, teacher: Any, places: Mapping[str, list[Place]], gold: _Gold | None) -> _Read:
        names = list(Names(self._recipe, self._behaviors, teacher_hash(teacher)))
        wanted = {name: places[name.language] for name in names}
        start = time.perf_counter()
        readings, asked = self._into("readings", teacher, wanted)
        rate = asked / (time.perf_counter() - start) if asked >= RATED else None
        annotated: dict[Name, dict[str, Reading]] = {}
        if gold:
            annotated, _ = self._into(GOLD_FOLDER, teacher, {_entity_name(names): gold.places()})
        return _Read(readings, next(iter(annotated.values()), {}), rate)

    def _into(
        self, folder: str, teacher: Any, wanted: Mapping[Name, list[Place]]
    ) -> tuple[dict[Name, dict[str, Reading]], int]:
        path, asked = self._folder / folder, 0
        with Store(path, self._recipe.reading.shard_rows) as store:
            for name, places in wanted.items():
                asked += self._ask(teacher, name, places, store)
        found = {name: load(path, [_key(name, place) for place in places]) for name, places in wanted.items()}
        return {name: {reading.text: reading for reading in some.values()} for name, some in found.items()}, asked

    def _ask(self, teacher: Any, name: Name, places: Sequence[Place], store: Store) -> int:
        behavior = self._behaviors.of(name.behavior, name.language)
        there = store.has([_key(name, place) for place in places])
        missing = [place for place, known in zip(places, there, strict=True) if not known]
        suffixes = [behavior.suffix(paragraph.sentence(number)) for paragraph, number in missing]
        answers = teacher.answer(behavior.prefix, suffixes, stop=behavior.stop, max_new_tokens=name.max_new_tokens)
        label = f"{name.label} in {teacher.identity()['dtype']}"
        for done, (index, answer) in enumerate(answers, start=1):
            paragraph, number = missing[index]
            key = _key(name, missing[index])
            store.append([reading_of(key, paragraph, number, behavior, answer, name, self._recipe)])
            self._console.progress(label, done, len(missing))
        return len(missing)


def _record(recipe: Recipe, full: _Read, int8: _Read, gold: _Gold | None, found: dict[str, Any]) -> None:
    """Put the figures of each prompt on record, and into ``found``."""
    found["rates"] = {found["dtype"]: full.rate, "int8": int8.rate}
    behaviors = behaviors_of(recipe.reading)
    for name, other in zip(full.readings, int8.readings, strict=True):
        asked = int8_record.Asked(
            found["weights"], recipe.teacher.chat_template, found["dtype"], name.prompt_hash, name.max_new_tokens
        )
        before = int8_record.recorded(asked) or {}
        if None in found["rates"].values() and before.get("processor") == found["processor"]:
            found["rates"] = before["rates"]
        annotated = (full.gold, int8.gold, gold.items) if gold and name is _entity_name(full.readings) else None
        figures = _figures(
            behaviors.of(name.behavior, name.language),
            recipe.reading.drop_bad_entities,
            (full.readings[name], int8.readings[other]),
            annotated,
        )
        if annotated is None and before.get("entity_f1"):
            # What an earlier check found against annotations still holds.
            figures["entity_f1"] = before["entity_f1"]
        figures["passed"] = all(Loss(**figures[key]).passed for key in LOSSES if figures.get(key))
        about = {key: found[key] for key in ("layers", "processor", "rates")}
        int8_record.record(asked, rounded({**figures, **about}))
        found["prompts"][name.label] = figures


BySentence = Mapping[str, Reading]


def _figures(
    behavior: Behavior,
    drop_bad_parts: bool,
    pair: tuple[BySentence, BySentence],
    annotated: tuple[BySentence, BySentence, Sequence[GoldEntities]] | None,
) -> dict[str, Any]:
    """Of one prompt, the full dtype before int8: the loss of verified readings, the share of answers that are the same
    word for word, and the loss of entity F1 where there are annotations."""

    def contents(readings: BySentence, texts: Iterable[str]) -> list[dict[str, Any] | None]:
        # Judged anew: what is stored may have been judged by an older verifier.
        found = [
            behavior.judge(r.raw, r.text, finished=r.finished, drop_bad_parts=drop_bad_parts)
            for r in (readings[text] for text in texts)
        ]
        return [(j.content or {}) if j.verdict == "verified" else None for j in found]

    texts = list(pair[0])
    verified = [[content is not None for content in contents(side, texts)] for side in pair]
    found: dict[str, Any] = {
        "same_words": sum(pair[0][text].raw == pair[1][text].raw for text in texts) / len(texts),
        "verified": asdict(verified_loss(*verified)),
    }
    if annotated:
        gold = annotated[2]
        parts = [entity_parts(contents(side, [item.sentence for item in gold]), gold) for side in annotated[:2]]
        loss = f1_loss(*parts)
        found["entity_f1"] = asdict(loss) if loss else None
    return found


def _key(name: Name, place: Place) -> str:
    paragraph, number = place
    return name.key(paragraph.sentence(number))


def _entity_name(names: Iterable[Name]) -> Name:
    return next(name for name in names if name.behavior == "ner")


def _annotated(recipe: Recipe, entities: Path | None, limit: int) -> _Gold | None:
    """The annotated sentences of ``entities``, else of the recipe's ``evaluation.gold_entities``."""
    path = entities or (Path(recipe.evaluation.gold_entities) if recipe.evaluation.gold_entities else None)
    if path is None or "ner" not in recipe.reading.names:
        if entities:
            raise BrdError("--entities: this recipe does not read with ner")
        return None
    items = load_entities(path, limit)
    if len(items) < LEAST:
        raise BrdError(f"{path}: {len(items)} annotated sentences; a check takes {LEAST} or more (-n {LEAST})")
    return _Gold(path.name, items)


def _sample(recipe: Recipe, most: int) -> dict[str, list[Place]]:
    """The sentences of the lowest hashes among those that the recipe reads, by language (empty where all are asked
    alike): a sample from all over the text."""
    found: dict[str, dict[bytes, Place]] = {code: {} for code in recipe.reading.languages or [""]}
    for paragraph in choose(recipe, Counter(), open_corpus(recipe)):
        some = found[paragraph.language if recipe.reading.languages else ""]
        for number in paragraph.readable:
            some.setdefault(hashlib.sha256(paragraph.sentence(number).encode()).digest(), (paragraph, number))
        if len(some) > 4 * most + 1000:
            lowest = sorted(some)[:most]
            kept = {key: some[key] for key in lowest}
            some.clear()
            some.update(kept)
    for code, some in found.items():
        if len(some) < LEAST:
            of = f" in {code}" if code else ""
            raise BrdError(
                f"the recipe reads {len(some)} different sentences{of}; a check takes {LEAST} or more, since "
                "of fewer a point says nothing (reading.sentences, or a larger text)"
            )
    return {code: [some[key] for key in sorted(some)[:most]] for code, some in found.items()}
