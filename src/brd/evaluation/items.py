"""A task's records rendered into items to score: prompt, candidates, what each earns; with few-shot examples."""

import hashlib
import heapq
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, get_args

from brd.errors import BrdError, nearest
from brd.evaluation.records import Record, records
from brd.evaluation.tasks import ENVIRONMENT, Task, candidates_problem, context_problem, label_text

# What stands in the place of an item when a model is asked for its preference alone (Zhao et al. 2021).
CONTENT_FREE = ("N/A", "[MASK]", "")

Half = Literal["a", "b"]
"""A task's items in two by hash: ``a`` for all looking and choosing, ``b`` to be scored once at the end."""

Numbered = Iterator[tuple[int, Record]]
"""Records with their numbers in the source, from 0."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question. ``credits`` is what choosing each of ``candidates`` earns; ``id`` is task/position (from 0).

    ``unconditional`` is the prompt of the PMI metric, where that was asked for.
    """

    id: str
    context: str
    candidates: tuple[str, ...]
    credits: tuple[float, ...]
    unconditional: str | None = None


def items(
    task: Task,
    template: str | None = None,
    limit: int | None = None,
    shots: int | None = None,
    pmi: bool = False,
    half: Half | None = None,
) -> Iterator[Item]:
    """The task's items in the order of its source; ``limit`` takes the first so many, always the same ones.

    ``half`` keeps the items of that half only (``half_of``), under the names that they have in the whole task;
    ``limit`` then takes those of the lowest ``rank``, as a source may be sorted by label. ``shots`` examples (the
    task's own number unless said) stand before each prompt; where they are taken from the task's own source, these
    records are not scored. Records are streamed and rendered one at a time. Raises BrdError, at once for an unknown
    template or half, a limit below 1 or shots below 0, and while iterating for data that are missing, broken or do
    not fit the template or the labels.
    """
    name = task.template(template)
    if limit is not None and limit < 1:
        raise BrdError(f"task {task.name}: limit should be at least 1 (got {limit})")
    shots = task.few_shot.count if shots is None else shots
    if half is not None and half not in get_args(Half):
        raise BrdError(f"task {task.name}: unknown half {half!r}; {nearest(half, get_args(Half))}")
    if shots < 0:
        raise BrdError(f"task {task.name}: the number of examples should be at least 0 (got {shots})")
    if pmi and task.templates[name].unconditional is None:
        raise BrdError(f"task {task.name}, template {name}: the metric pmi needs the template's key `unconditional`")
    return _items(task, name, limit, shots, pmi, half)


def _items(task: Task, name: str, limit: int | None, shots: int, pmi: bool, half: Half | None) -> Iterator[Item]:
    # Examples of the task's own source are its first records.
    skipped = shots if task.few_shot.source is None else 0
    chosen = _scored(task, skipped) if half is None else _of_half(task, skipped, half, limit)
    front = examples(task, name, shots)
    empty = True
    for item in islice(render(task, name, chosen), limit):
        empty = False
        yield replace(item, context=front + item.context, unconditional=item.unconditional if pmi else None)
    if empty:
        which = " beyond the examples" if shots else ""
        raise BrdError(f"task {task.name}: its source holds no records{which}{f' in half {half}' if half else ''}")


def _scored(task: Task, skipped: int) -> Numbered:
    return islice(enumerate(records(task.name, task.source)), skipped, None)


def _of_half(task: Task, skipped: int, half: Half, limit: int | None) -> Numbered:
    found = ((number, record) for number, record in _scored(task, skipped) if half_of(task, record) == half)
    if limit is None:
        return found
    lowest = heapq.nsmallest(limit, ((rank(task, record), number) for number, record in found))
    kept = {number for _, number in lowest}
    # A second reading of the source: of a large one only hashes and numbers are held.
    return ((number, record) for number, record in _scored(task, skipped) if number in kept)


def content(task: Task, record: Record) -> str:
    """What is asked in a record, as JSON: its fields sorted by name, without nulls and without what says which
    candidate is right (``label``, or ``credits`` where that is a field).

    Records of expressions in ``credits`` keep all fields. The same for every template and at every place of a file.
    """
    left_out = {task.label, task.credits}
    if task.source.bigbench:
        # The order of the choices listed there hangs on the example's number.
        left_out |= {"context", "answers"}
    kept = {key: value for key, value in record.items() if value is not None and key not in left_out}
    return json.dumps(kept, sort_keys=True, default=str)


def half_of(task: Task, record: Record) -> Half:
    """The half of a record's item, by the SHA-256 of the task's name and the record's content."""
    return "a" if _hash(task.name, content(task, record))[0] < 128 else "b"


def rank(task: Task, record: Record) -> bytes:
    """A hash by which a half is thinned out; it has nothing to do with the one that makes the halves."""
    return _hash(task.name, "limit", content(task, record))


def _hash(*parts: str) -> bytes:
    return hashlib.sha256("\0".join(parts).encode()).digest()


def examples(task: Task, template: str, shots: int) -> str:
    """The few-shot examples as they stand before each prompt, each with its best candidate; '' for none."""
    if not shots:
        return ""
    source = task.few_shot.source or task.source
    chosen = list(islice(render(task, template, enumerate(records(task.name, source))), shots))
    if len(chosen) < shots:
        raise BrdError(f"task {task.name}: {shots} examples are asked for, its source of examples holds {len(chosen)}")
    solved = [
        item.context + item.candidates[max(range(len(item.credits)), key=item.credits.__getitem__)] for item in chosen
    ]
    return "".join(text + task.few_shot.separator for text in solved)


def content_free(task: Task, template: str | None = None, shots: int | None = None) -> list[Item]:
    """The template filled with nothing (``CONTENT_FREE``), to learn which candidate a model prefers by itself.

    Only for templates with fixed candidates; an empty list for others (contextual calibration, Zhao et al. 2021).
    No candidate is right, so none earns anything.
    """
    name = task.template(template)
    if not task.templates[name].fixed:
        return []
    front = examples(task, name, task.few_shot.count if shots is None else shots)
    record = next(records(task.name, task.source), None)
    found = []
    for text in CONTENT_FREE:
        blank = {key: text if isinstance(value, str) else value for key, value in (record or {}).items()}
        where = f"{task.name}/content-free {text!r}"
        try:
            (item,) = render(task, name, enumerate([blank]), graded=False)
        # Not every template stays well formed when its fields are empty.
        except BrdError:
            continue
        found.append(replace(item, id=where, context=front + item.context, unconditional=None))
    return found


def render(task: Task, name: str, source: Iterable[tuple[int, Record]], graded: bool = True) -> Iterator[Item]:
    """Records as items under the template ``name``, without examples. Where they are not ``graded``, labels are not
    looked at and no candidate earns anything."""
    chosen = task.templates[name]
    render = _Renderer(task, name)
    for number, record in source:
        # A null field counts as missing: Jinja would render it as the word None.
        fields = {key: value for key, value in record.items() if value is not None}
        where = f"task {task.name}, template {name}, item {number}"
        fields = render.fields(fields, where)
        context, texts, unconditional = render.texts(fields, where)
        problem = None if chosen.verbatim else context_problem(context) or context_problem(unconditional or "")
        problem = problem or candidates_problem(texts, chosen.verbatim)
        if problem:
            raise BrdError(f"{where}: {problem}")
        credits = render.credits(fields, texts, where) if graded else (0.0,) * len(texts)
        yield Item(f"{task.name}/{number}", context, texts, credits, unconditional)


class _Renderer:
    """The Jinja of one template, compiled once."""

    def __init__(self, task: Task, name: str) -> None:
        chosen = task.templates[name]
        self._task, self._verbatim = task, chosen.verbatim
        self._fields = {key: ENVIRONMENT.from_string(text) for key, text in task.fields.items()}
        self._prompt = ENVIRONMENT.from_string(chosen.prompt)
        self._unconditional = ENVIRONMENT.from_string(chosen.unconditional) if chosen.unconditional else None
        self._listed: Any = None
        self._candidates: list[Any] = []
        if isinstance(chosen.candidates, str):
            self._listed = ENVIRONMENT.compile_expression(chosen.candidates, undefined_to_none=False)
        else:
            self._candidates = [ENVIRONMENT.from_string(candidate) for candidate in chosen.candidates]
        graded = task.credits or (task.labels if isinstance(task.labels, str) else None)
        self._graded: Any = ENVIRONMENT.compile_expression(graded, undefined_to_none=False) if graded else None

    def fields(self, record: Record, where: str) -> Record:
        for key, template in self._fields.items():
            record[key] = self._filled(template.render, record, where)
        return record

    def texts(self, record: Record, where: str) -> tuple[str, tuple[str, ...], str | None]:
        """Prompt, candidates, unconditional prompt."""

        def fill() -> tuple[str, tuple[str, ...], str | None]:
            context = self._prompt.render(record)
            unconditional = self._unconditional.render(record) if self._unconditional else None
            if self._listed is None:
                return context, tuple(candidate.render(record) for candidate in self._candidates), unconditional
            found = [str(text) for text in _as_list(self._listed(record))]
            return context, tuple(found if self._verbatim else [f" {t.strip()}" for t in found]), unconditional

        context, texts, unconditional = self._filled(lambda _: fill(), record, where)
        if not texts:
            raise BrdError(f"{where}: it has no candidates")
        return context, texts, unconditional

    def credits(self, record: Record, texts: tuple[str, ...], where: str) -> tuple[float, ...]:
        """What each candidate earns."""
        task = self._task
        if task.credits is not None:
            found = self._filled(lambda fields: tuple(map(float, _as_list(self._graded(fields)))), record, where)
            if len(found) != len(texts):
                raise BrdError(f"{where}: {len(found)} credits for {len(texts)} candidates")
            if not all(map(math.isfinite, found)):
                raise BrdError(f"{where}: credits should be finite numbers (got {', '.join(map(str, found))})")
            return tuple(found)
        if task.label not in record:
            raise BrdError(f"{where}: no label in field {task.label!r}; fields with a value: {', '.join(record)}")
        raw = label_text(record[task.label])
        if isinstance(task.labels, dict):
            known: dict[str, int] = task.labels
        else:
            listed = self._filled(lambda fields: _as_list(self._graded(fields)), record, where)
            known = {label_text(value): index for index, value in enumerate(listed)}
        if raw not in known:
            raise BrdError(f"{where}: label {record[task.label]!r} is not among labels ({', '.join(known)})")
        if known[raw] >= len(texts):
            raise BrdError(f"{where}: label {raw!r} is candidate {known[raw]}, but there are only {len(texts)}")
        return tuple(float(index == known[raw]) for index in range(len(texts)))

    def _filled(self, fill: Any, record: Record, where: str) -> Any:
        try:
            return fill(record)
        # A template calls whatever filters and methods it likes, which raise what they like.
        except Exception as error:
            reason = f"{error}; fields with a value: {', '.join(record)}"
            raise BrdError(f"{where}: the template cannot be filled in: {reason}") from None


def _as_list(found: Any) -> list[Any]:
    """The value of an expression as a list; a text would be taken for the list of its letters."""
    if isinstance(found, str):
        raise TypeError(f"the expression should give a list, not the text {found[:40]!r}")
    values = list(found)
    if None in values:
        raise ValueError("the expression gives a list with a null")
    return values
