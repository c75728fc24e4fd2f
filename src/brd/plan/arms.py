"""What the teacher is asked while arms are composed: to go on with texts, to answer task inputs, to read these.

It is counted as the run will ask it, and the sample is asked where the run will find it.
"""

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from types import SimpleNamespace
from typing import Any, cast

from brd.composing.compose import original_texts
from brd.composing.continuations import at_once, beginnings, joined, kind_of
from brd.composing.packing import encode
from brd.composing.task_answers import OPTIONS, questions
from brd.pipeline import Pipeline
from brd.plan.asking import SMALL, Asked, Call, Measured, Question, ask, most_at_once, reading, untimed
from brd.plan.corpus import Candidate, Corpus, Weighed, mean_length
from brd.plan.cost import SECONDS, prices, row
from brd.plan.reading import is_asked, timing
from brd.plan.training import Amount
from brd.reading.answers import Answers, Kind
from brd.reading.answers import Asked as Prompted
from brd.reading.known import Known, known_to
from brd.reading.naming import Name, Names
from brd.reading.reader import Readings
from brd.reading.store import Store, shards
from brd.reading.task_inputs import TaskInput, paragraphs_of
from brd.recipe import Recipe, changed
from brd.recipe_corpus import open_corpus
from brd.recipe_tasks import ANSWERS, INPUTS_READ, choosing, reading_teacher, task_inputs
from brd.teachers import LazyTeacher
from brd.teachers.teacher import Answer

# Of the run's first beginnings so many tell, by their answers, how long documents become.
LOOKED = 512


@dataclass(frozen=True, slots=True)
class _Left:
    """Different prompts, those that have no answer yet, and the mean characters of these."""

    distinct: int
    to_ask: int
    length: float


@dataclass(frozen=True, slots=True)
class _Part:
    """What is asked in one way, by ``arms`` first. ``like`` is the question of the run's readings whose sample tells of
    this one; ``assumed`` are answers as they may be, where nothing can be asked that the run is sure to take."""

    question: Question
    arms: set[str]
    left: Callable[[], _Left]
    like: str = ""
    assumed: Call | None = None


def cost(
    pipeline: Pipeline,
    corpus: Corpus,
    amounts: Mapping[str, Amount],
    tokenizer: Any,
    read: tuple[Names, Measured],
    earlier: Sequence[Measured],
    wanted: int | None,
) -> tuple[dict[str, Any] | None, list[Measured]]:
    """What composing asks of the teacher (None where it asks nothing), and the samples that tell it: ``earlier`` ones,
    and one of what they lack. ``read`` are the names of the run's readings and the sample of these."""
    recipe, path = pipeline.recipe, pipeline.run.path
    arms = {arm: (pipeline.about(arm).data, pipeline.arm_recipe(arm)) for arm in pipeline.composed}
    going_on = {arm: own for arm, (data, own) in arms.items() if data == "continuations"}
    # Seeds have the same inputs.
    of_tasks = _different({arm: own for arm, (data, own) in arms.items() if data in ("answers", "relaxed")})
    relaxed = _different({arm: own for arm, (data, own) in arms.items() if data == "relaxed"})
    if not going_on and not of_tasks:
        return None, []
    # As composing opens it.
    began, teacher = time.perf_counter(), LazyTeacher(recipe.teacher)
    with ExitStack() as stack:
        stack.callback(teacher.close)
        answers = stack.enter_context(Answers(path / ANSWERS, teacher, recipe.reading.shard_rows))
        inputs = {arm: task_inputs(own, False, Counter()) for arm, own in {**of_tasks, **relaxed}.items()}
        parts = [*_continuations(going_on, corpus, amounts, tokenizer, answers, teacher)]
        if inputs:
            parts.append(_answers(recipe, inputs, answers, teacher))
        if relaxed:
            store = stack.enter_context(Store(path / INPUTS_READ, recipe.reading.shard_rows))
            texts = {arm: inputs[arm] for arm in relaxed}
            reader = stack.enter_context(reading_teacher(recipe, path, teacher))
            parts += _sentences(pipeline, texts, read[0], corpus, store, reader)
        known = [read[1], *earlier]
        lacking = [
            part.question
            for part in parts
            if not any(m.answers(label) for m in known for label in (part.like, part.question.label))
        ]
        why = untimed(recipe, by_batch=False)
        most = None if why else most_at_once(recipe)
        now = ask(teacher, recipe.teacher.named, lacking, most, wanted, began, pipeline.console.progress)
        left = [part.left() for part in parts]
    sittings = [*earlier, *([now] if now.calls else [])]
    return _told(recipe, parts, left, read[1], sittings, now, why), sittings


def _different(arms: dict[str, Recipe]) -> dict[str, Recipe]:
    first = {own.task_data.model_dump_json(): arm for arm, own in reversed(arms.items())}
    return {arm: own for arm, own in arms.items() if arm in first.values()}


def _told(
    recipe: Recipe,
    parts: Sequence[_Part],
    left: Sequence[_Left],
    read: Measured,
    sittings: Sequence[Measured],
    now: Measured,
    why: str,
) -> dict[str, Any]:
    """Rows by question; time and price of all. ``why`` no time is told."""
    timed = [(m, None if why else timing(recipe, m)) for m in sittings]
    timed.append((read, None if untimed(recipe) else timing(recipe, read)))
    rows: dict[str, dict[str, Any]] = {}
    fetching: set[str] = set()
    before, spent = 0, [0.0, 0.0, 0.0]
    for part, yet in zip(parts, left, strict=True):
        label, mine = part.question.label, len(now.answers(part.question.label))
        tells = [(m, t, of) for m, t in timed for of in (label, part.like) if m.answers(of)]
        measured, its, of = tells[0] if tells else (Measured({}, 0.0), None, "")
        answers = part.assumed or measured.answers(of)
        warm = measured.calls[of][-1] if tells and recipe.teacher.named else None
        rows[label] = row(yet.distinct - mine, yet.to_ask, yet.length, answers, False, warm)
        rows[label] |= {"asked": mine, "assumed": part.assumed is not None}
        if yet.to_ask:
            fetching |= part.arms
            if its:
                takes = its.predict(of, yet.to_ask, before)
                each = (takes.seconds, takes.low, takes.high)
                rows[label]["seconds"] = dict(zip(SECONDS, each, strict=True))
                spent = [s + t for s, t in zip(spent, each, strict=True)]
                before += yet.to_ask
    # Each arm has its teacher fetched; where nothing was asked as arms do, the reading tells what that takes.
    fetched = [m.start + t.start for m, t in timed if t]
    once = len(fetching) * max(fetched[: len(sittings)] or fetched, default=0.0)
    told = all("seconds" in found for found in rows.values() if found["to_ask"])
    one_by_one = recipe.teacher.prices and recipe.teacher.prices.model_copy(update={"batch": None})
    return {
        "rows": rows,
        "asked_now": len(now.all),
        "seconds": {"once": once, **dict(zip(SECONDS, (s + once for s in spent), strict=True))} if told else None,
        "untimed": why,
        "prices": prices(one_by_one, rows.values(), now.all),
    }


@dataclass(frozen=True, slots=True)
class _Prompt:
    asked: Prompted
    weight: float = 1.0

    @property
    def text(self) -> str:
        return self.asked.text


def _open(kind: Kind, some: Sequence[Prompted], answers: Answers) -> list[_Prompt]:
    """Those that have no answer, each once."""
    known = answers.knows(kind, some)
    return [*{one.text: _Prompt(one) for one, there in zip(some, known, strict=True) if not there}.values()]


def _question(
    label: str, kind: Kind, prefix: str, some: Sequence[Prompted], answers: Answers, teacher: LazyTeacher
) -> Question:
    def come(drawn: Sequence[_Prompt]) -> Iterator[tuple[int, str, bool, Answer]]:
        for index, found in answers.come(kind, [one.asked for one in drawn]):
            # Where candidates are scored nobody has counted what was read.
            prompt = found.prompt_tokens if kind.limit else teacher.count_tokens(drawn[index].text)
            yield index, "", False, replace(found, prompt_tokens=prompt)

    return Question(label, prefix, lambda one: one.text, _open(kind, some, answers), come)


def _continuations(
    arms: Mapping[str, Recipe],
    corpus: Corpus,
    amounts: Mapping[str, Amount],
    tokenizer: Any,
    answers: Answers,
    teacher: LazyTeacher,
) -> Iterator[_Part]:
    groups: dict[tuple[int, int], list[str]] = {}
    for arm, own in arms.items():
        groups.setdefault((own.distillation.prompt_tokens, own.distillation.new_tokens), []).append(arm)
    for (begun, new), names in groups.items():
        wants = {name: amounts[name].rows * arms[name].composing.row_tokens for name in names}
        # The others find the answers of the one that asks most.
        most = max(names, key=lambda name: wants[name])
        own, kind, tokens = arms[most], kind_of(arms[most]), wants[most] * amounts[most].fill
        about = partial(_question, f"continuations ({begun} + {new})", kind, kind.how[0])
        if corpus.train is None:
            some = [*beginnings(own, ((p.document, p.text) for p in corpus.paragraphs), tokenizer)]
            number = math.ceil(tokens / _longest(own, some, tokenizer))
            left = partial(_Left, number, number, _mean([len(one.text) for one, _ in some]))
            prefix, named = teacher.count_tokens(kind.how[0]), own.teacher.named
            texts = [one.text for one, _ in some[:SMALL]]
            assumed = [_answer(len(text), teacher.count_tokens(text), prefix, new, named) for text in texts]
            yield _Part(about([], answers, teacher), {most}, left, assumed=assumed)
        else:
            stream = partial(_beginnings, own, corpus, tokenizer)
            first = [one for one, _ in islice(stream(), at_once(own, wants[most]))]
            counted = partial(_counted, own, stream, tokens, wants[most], answers, tokenizer)
            yield _Part(about(first, answers, teacher), {most}, counted)


def _longest(own: Recipe, some: Sequence[tuple[Prompted, str]], tokenizer: Any) -> float:
    """Tokens of a document whose continuation is as long as it may be."""
    return _mean([len(ids) for ids in encode((begun for _, begun in some), tokenizer)]) + own.distillation.new_tokens


def _answer(characters: int, own: int, prefix: int, new: int, named: bool) -> Asked:
    prompt = prefix + own
    return Asked("", characters, 0.0, prompt, prompt if named else own, 0, new, True, False, 0)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0


def _beginnings(own: Recipe, corpus: Corpus, tokenizer: Any) -> Iterator[tuple[Prompted, str]]:
    """Those of the run, in its order."""
    # Of the readings only their paragraphs are asked for.
    readings = cast(Readings, SimpleNamespace(paragraphs=corpus.train))
    return beginnings(own, original_texts(own, readings, open_corpus(own), Counter()), tokenizer)


def _counted(
    own: Recipe,
    stream: Callable[[], Iterator[tuple[Prompted, str]]],
    tokens: float,
    wanted: int,
    answers: Answers,
    tokenizer: Any,
) -> _Left:
    """As composing goes through them, until ``tokens`` are written of ``wanted`` ones; documents that are not known yet
    have the mean length of those that are."""
    kind, texts = kind_of(own), stream()
    head = list(islice(texts, LOOKED))
    known = answers.knows(kind, [one for one, _ in head])
    there = [pair for pair, is_known in zip(head, known, strict=True) if is_known]
    said = answers.of(kind, [one for one, _ in there])
    # Where nothing was written there is no document.
    documents = [joined(begun, more) for (_, begun), more in zip(there, said, strict=True) if more.strip()]
    length = sum(len(ids) for ids in encode(documents, tokenizer)) / len(there) if there else 0.0
    length = length or _longest(own, head, tokenizer)
    written, asked, missing = 0.0, set[str](), dict[str, int]()
    texts = chain(head, texts)
    while written < tokens and (some := [one for one, _ in islice(texts, at_once(own, wanted - written))]):
        asked.update(one.text for one in some)
        missing.update((prompt.text, len(prompt.text)) for prompt in _open(kind, some, answers))
        written += len(some) * length
    return _Left(len(asked), len(missing), _mean([*missing.values()]))


def _answers(recipe: Recipe, inputs: Mapping[str, list[TaskInput]], answers: Answers, teacher: LazyTeacher) -> _Part:
    choose = choosing(recipe, teacher)
    found: dict[str, tuple[str, TaskInput]] = {}
    for arm, some in inputs.items():
        for one, asked in zip(some, questions(some, choose)[1], strict=True):
            found.setdefault(asked.text, (arm, one))
    kind, prompts = questions([one for _, one in found.values()], choose)
    label, prefix = ("task inputs, candidates", "") if choose else ("task inputs, options", OPTIONS.prefix)
    left = partial(_left, len(prompts), partial(_open, kind, prompts, answers))
    return _Part(_question(label, kind, prefix, prompts, answers, teacher), {arm for arm, _ in found.values()}, left)


def _left(distinct: int, open_: Callable[[], Sequence[Weighed]]) -> _Left:
    found = open_()
    return _Left(distinct, len(found), mean_length(found))


def _sentences(
    pipeline: Pipeline,
    inputs: Mapping[str, list[TaskInput]],
    names: Names,
    corpus: Corpus,
    store: Store,
    teacher: LazyTeacher,
) -> Iterator[_Part]:
    """Readings of the inputs' sentences, by the ``names`` of the run's own, but for those that the corpus has too,
    which is read before."""
    recipe, path = pipeline.recipe, pipeline.run.path
    elsewhere = [*recipe.reading.known, *map(str, shards(path / "readings"))]
    known = known_to(changed(recipe, {"reading.known": elsewhere}), names, path)
    paragraphs = [paragraph for some in inputs.values() for paragraph in paragraphs_of(recipe, some)]
    found = [Candidate(paragraph, number, 1.0) for paragraph in paragraphs for number in paragraph.readable]
    for name in names:
        before = {c.text for c in corpus.seen if is_asked(name, c)}
        own = {c.text: c for c in found if is_asked(name, c) and c.text not in before}
        open_ = partial(_unread, name, [*own.values()], store, known)
        question = replace(reading(recipe, teacher, names, name, open_(), store), label=f"task inputs, {name.label}")
        yield _Part(question, set(inputs), partial(_left, len(own), open_), name.label)


def _unread(name: Name, some: Sequence[Candidate], store: Store, known: Known) -> list[Candidate]:
    keys = [name.key(c.text) for c in some]
    there = store.has(keys)
    return [c for c, key, stored in zip(some, keys, there, strict=True) if not stored and key not in known]
