"""Answers that need not be asked for: those of exported files, and of other run folders.

Other run folders are looked into while others may be writing to them, so what is read there is whole files and whole
lines only; nothing is locked and nothing is written. What cannot be read there is passed over: it is asked for.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from brd.errors import BrdError
from brd.reading.lookup import Lookup
from brd.reading.naming import Names
from brd.reading.parquet import Damaged, named
from brd.reading.store import JOURNAL, TRAVELLING, read_journal, shards
from brd.recipe import Recipe
from brd.run import read_json, set_aside, write_json
from brd.sections.reading import SIBLINGS
from brd.teachers.teacher import Answer

# The columns that an answer is made of, in its order.
_ANSWER = ("raw", "prompt_tokens", "new_tokens", "finished")
# Beside the readings: how many of them were taken from where.
_TAKEN = "known.json"


def known_to(recipe: Recipe, names: Names, run: Path | None) -> "Known":
    """What ``reading.known`` of a recipe names, for a run folder. Raises BrdError for what is not there or is none."""
    files: list[Path] = []
    runs: list[Path] = []
    for entry in recipe.reading.known:
        path = Path(entry)
        if entry == SIBLINGS:
            runs += siblings(run) if run else []
        elif not path.is_dir():
            files.append(path)
        elif not (there := [path] if _is_run(path) else _runs_in(path)):
            raise BrdError(f"reading.known: {path}: no run folder, and no folder of run folders")
        else:
            runs += there
    here = run and run.resolve()
    return Known(files, [other for other in dict.fromkeys(runs) if other.resolve() != here], names)


def siblings(run: Path) -> list[Path]:
    """The run folders beside this one, but for those that ``--fresh`` has set aside, and those of other users: a recipe
    has to name these, since anybody may put something into a folder such as /tmp."""
    try:
        own = os.stat(run).st_uid
        return [path for path in _runs_in(run.parent) if not set_aside(path) and os.stat(path).st_uid == own]
    except OSError:
        return []


def taken_from(folder: Path) -> dict[str, int]:
    """How many answers in a folder of readings were taken from elsewhere instead of being asked for, by where."""
    found = read_json(folder / _TAKEN)
    return found if isinstance(found, dict) else {}


class Known:
    """Answers by key, of exported ``files`` and of the stores of other ``runs``. Of a key that several hold it is the
    last file's, else the last run's.

    ``names`` tell which files cannot hold what will be looked up, by the statistics at their ends; the others are gone
    through when something is looked up first. Raises BrdError for a file that is missing or something else.
    """

    def __init__(self, files: Sequence[Path], runs: Sequence[Path] = (), names: Names | None = None) -> None:
        self._teacher = names and names.teacher
        self._prompts = {name.prompt_hash for name in names or ()}
        # What each file is counted as.
        self._places: dict[Path, str] = {}
        self._journals: dict[str, tuple[Answer, str]] = {}
        self._lookup: Lookup | None = None
        self._taken: Counter[str] = Counter()
        self._runs, self._passed_over = set(runs), set[Path]()
        for run in runs:
            self._look_into(run)
        for path in files:
            if not path.is_file():
                raise BrdError(f"reading.known: {path}: no such file or folder")
            if self._may_hold(path):
                self._places[path] = _place(path)

    def __bool__(self) -> bool:
        """Whether there is anything that may hold an answer."""
        return bool(self._places or self._journals)

    def __contains__(self, key: str) -> bool:
        return bool(self) and (key in self._journals or bool(self._index.where([key])[0] >= 0))

    def answers(self, keys: Iterable[str]) -> dict[str, Answer]:
        """The answers to these keys, as far as they are known, by key; they count as taken."""
        wanted = set(keys)
        rows = self._index.where(list(wanted))
        found: dict[str, Answer] = {}
        for path, table in self._index.tables(np.unique(rows[rows >= 0]), ["key", *_ANSWER]):
            columns = [table[name].to_pylist() for name in ("key", *_ANSWER)]
            # Another file may lie there by now, so it is the row's own key that says what the answer is to.
            some = {key: Answer(*rest) for key, *rest in zip(*columns, strict=True) if key in wanted}
            found |= some
            self._taken[self._places[path]] += len(some)
        for key in (wanted - found.keys()) & self._journals.keys():
            found[key], place = self._journals[key]
            self._taken[place] += 1
        return found

    def note(self, folder: Path) -> None:
        """Write down beside the readings what was taken since (``taken_from``)."""
        if taken := +self._taken:
            write_json(folder / _TAKEN, dict(Counter(taken_from(folder)) + taken))
            self._taken.clear()

    @property
    def _index(self) -> Lookup:
        if self._lookup is None:
            self._lookup = Lookup(list(self._places), self._failed)
        return self._lookup

    def _look_into(self, run: Path) -> None:
        folder = run / "readings"
        try:
            # Before the shards: what is sealed in the meantime is found in the journal or in its shard.
            for reading in read_journal(folder / JOURNAL):
                if self._teacher in (None, reading.teacher) and (
                    not self._prompts or reading.prompt_hash in self._prompts
                ):
                    answer = Answer(reading.raw, reading.prompt_tokens, reading.new_tokens, reading.finished)
                    self._journals[reading.key] = answer, _place(run)
        except OSError as error:
            self._pass_over(run, f"{folder / JOURNAL}: cannot be read ({error.strerror or error})")
        for path in shards(folder):
            try:
                if self._may_hold(path):
                    self._places[path] = _place(run)
            except BrdError as error:
                self._failed(path, error)

    def _may_hold(self, path: Path) -> bool:
        """Whether a file may hold what is wanted. Raises BrdError for one without readings."""
        with named(path):
            about = pq.read_metadata(path)
        names = about.schema.names
        if missing := [name for name in TRAVELLING if name not in names]:
            raise BrdError(f"reading.known: {path}: no readings in this file (it has no column {missing[0]!r})")
        groups = [about.row_group(number) for number in range(about.num_row_groups)]
        wanted = {"teacher": {self._teacher}, "prompt_hash": self._prompts} if self._teacher else {}
        return any(
            all(_within(group.column(names.index(name)).statistics, values) for name, values in wanted.items())
            for group in groups
        )

    def _failed(self, path: Path, error: BrdError) -> None:
        run = path.parent.parent
        if run not in self._runs:
            raise error
        self._pass_over(run, f"{path}: damaged ({error.why})" if isinstance(error, Damaged) else str(error))

    def _pass_over(self, run: Path, why: str) -> None:
        if run not in self._passed_over:
            self._passed_over.add(run)
            print(f"{why}; passed over, what nobody else has answered is asked", file=sys.stderr, flush=True)


def _within(statistics: Any, values: Iterable[str]) -> bool:
    """Whether a column may hold one of these values."""
    if statistics is None or not statistics.has_min_max:
        return True
    return any(statistics.min <= value <= statistics.max for value in values)


def _place(path: Path) -> str:
    """What people call it: its name and that of the folder around it."""
    return "/".join(Path(os.path.abspath(path)).parts[-2:])


def _is_run(path: Path) -> bool:
    return os.path.isfile(path / "recipe.yaml") and os.path.isdir(path / "readings")


def _runs_in(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in sorted(os.listdir(folder)) if _is_run(folder / name)]
    except OSError:
        return []
