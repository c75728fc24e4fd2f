"""What was read, for others: the readings of a run as JSON lines, as conversations, and as Parquet."""

import contextlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from brd import recipe as recipes
from brd.errors import BrdError, nearest
from brd.reading.behavior import Behaviors, load_behaviors
from brd.reading.chosen import ReadParagraph, iter_paragraphs
from brd.reading.lookup import Lookup
from brd.reading.naming import Names, names_in
from brd.reading.reader import Found, as_taught, iter_readings
from brd.reading.store import Reading, shards
from brd.recipe import Recipe
from brd.run import read_json

Part = Literal["train", "held_out", "all"]
Level = Literal["sentence", "paragraph"]
# What `datasets` calls the parts when it loads a folder.
SPLITS = {"train": "train", "held_out": "test"}

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which readings leave a run."""

    behaviors: tuple[str, ...]
    part: Part = "train"
    verified_only: bool = True

    def parts(self) -> tuple[Part, ...]:
        return ("train", "held_out") if self.part == "all" else (self.part,)

    def held_out(self) -> tuple[bool, ...]:
        return tuple(name == "held_out" for name in self.parts())

    def takes(self, reading: Reading) -> bool:
        return reading.verdict == "verified" or not self.verified_only


@dataclass(frozen=True, slots=True)
class ReadRun:
    """A run folder whose step `read` was run, with its recipe."""

    path: Path
    recipe: Recipe

    @property
    def readings(self) -> Path:
        return self.path / "readings"

    def behaviors(self, names: Iterable[str]) -> Behaviors:
        settings, wanted = self.recipe.reading, set(names)
        entries = [entry for entry, name in zip(settings.behaviors, settings.names, strict=True) if name in wanted]
        return load_behaviors(entries, settings.exemplars, settings.languages)

    def names(self, behaviors: Iterable[str]) -> Names:
        return names_in(self.recipe, self.readings, self.behaviors(behaviors))

    def incomplete(self) -> BrdError:
        return BrdError(
            f"{self.path}: readings that its recipe.yaml asks for are not there (the recipe, or this program's "
            f"prompts, changed since); run `{self._read()}` again"
        )

    def _read(self) -> str:
        return f"brd read {self.path / 'recipe.yaml'} --out {self.path}"


def open_run(path: Path) -> ReadRun:
    """The run in a folder. Raises BrdError where there is none, and where its step `read` has not been run."""
    if not (path / "recipe.yaml").is_file():
        run = Path("runs") / path
        hint = f"; did you mean {run}?" if (run / "recipe.yaml").is_file() else ", such as runs/demo"
        what = "is no run folder (it has no recipe.yaml)" if path.exists() else "no such folder"
        raise BrdError(f"{path}: {what}; RUN is a folder that `brd run` or `brd read` made{hint}")
    run_ = ReadRun(path, recipes.load(str(path / "recipe.yaml")))
    needed = [run_.readings / "paragraphs.parquet", run_.readings / "teacher.json", path / "steps" / "read.json"]
    if not all(file.is_file() for file in needed):
        raise BrdError(f"{path}: step read has not been run to its end; run `{run_._read()}` first")
    return run_


def select(run: ReadRun, behaviors: str | None, part: str, verified_only: bool) -> Selection:
    """A selection by the words of the command line; BrdError for a behavior or a part that there is not."""
    known = run.recipe.reading.names
    asked = known if behaviors is None else [name.strip() for name in behaviors.split(",") if name.strip()]
    for name in asked:
        if name not in known:
            raise BrdError(f"--behaviors {name}: {run.path} has no such readings; {nearest(name, known)}")
    if not asked:
        raise BrdError(f"--behaviors: names none; known: {', '.join(known)}")
    if part not in ("train", "held_out", "all"):
        raise BrdError(f"--part {part}: no such part; it should be train, held_out or all")
    return Selection(tuple(name for name in known if name in asked), cast(Part, part), verified_only)


def stream(
    run: ReadRun, selection: Selection, progress: Callable[[int], None] | None = None
) -> Iterator[tuple[ReadParagraph, Found]]:
    """The paragraphs of the selection's part with the readings of its behaviors, whatever their verdict, in the order
    of the corpus. ``progress`` is told the number of paragraphs done.

    A few thousand sentences are in memory at a time. Raises BrdError where a reading is missing.
    """
    names = run.names(selection.behaviors)
    for done, (paragraph, found) in enumerate(iter_readings(run.readings, names, *selection.held_out()), start=1):
        if len(found) < len(names.behaviors) * len(paragraph.readable):
            raise run.incomplete()
        yield paragraph, found
        if progress and not done % 500:
            progress(done)


def distinct(run: ReadRun, selection: Selection) -> Iterator[tuple[Reading, str]]:
    """The selected readings, each once wherever its sentence occurs, in the order in which they were stored; with the
    code of the language in which it stands first."""
    names = run.names(selection.behaviors)
    lookup = Lookup(shards(run.readings))
    # Of each stored reading the number of its language, 0 where it is not wanted.
    codes: dict[str, int] = {}
    wanted = np.zeros(len(lookup), dtype=np.int32)
    for paragraph in iter_paragraphs(run.readings):
        if paragraph.held_out in selection.held_out():
            sentences = [paragraph.sentence(number) for number in paragraph.readable]
            mine = [names.of(behavior, paragraph.language) for behavior in names.behaviors]
            rows = lookup.where([name.key(sentence) for name in mine for sentence in sentences])
            if (rows < 0).any():
                raise run.incomplete()
            number = codes.setdefault(paragraph.language, len(codes) + 1)
            wanted[rows] = np.where(wanted[rows] > 0, wanted[rows], number)
    rows, languages = np.flatnonzero(wanted), list(codes)
    found = zip(lookup.readings(rows), wanted[rows].tolist(), strict=True)
    return ((reading, languages[number - 1]) for reading, number in found if selection.takes(reading))


def part(paragraph: ReadParagraph) -> Part:
    return "held_out" if paragraph.held_out else "train"


def placed(paragraph: ReadParagraph, number: int, reading: Reading) -> Reading:
    """The reading with the place where its sentence stands here (it knows only where it was first met)."""
    span = paragraph.spans[number]
    return replace(
        reading,
        document=paragraph.document,
        paragraph=paragraph.index,
        sentence=number,
        start=span.start,
        end=span.end,
    )


def record(paragraph: ReadParagraph, number: int, reading: Reading) -> dict[str, Any]:
    """A reading as a JSON record."""
    return {
        "document": paragraph.document,
        "paragraph": paragraph.index,
        "sentence": number,
        "part": part(paragraph),
        "language": paragraph.language or None,
        "text": reading.text,
        "behavior": reading.behavior,
        "content": reading.parsed(),
        "verdict": reading.verdict,
        "reason": reading.reason,
        "raw": reading.raw,
        "teacher": reading.teacher,
        "prompt_hash": reading.prompt_hash,
        "key": reading.key,
    }


def records(
    paragraphs: Iterable[tuple[ReadParagraph, Found]], selection: Selection, counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    """One record a reading, sentence by sentence. ``counts`` is told of each behavior's and of what is left out."""
    for paragraph, found in paragraphs:
        for (number, name), reading in found.items():
            if selection.takes(reading):
                counts[name] += 1
                yield record(paragraph, number, reading)
            else:
                counts["left out"] += 1


def conversations(
    run: ReadRun,
    paragraphs: Iterable[tuple[ReadParagraph, Found]],
    selection: Selection,
    level: Level,
    counts: Counter[str],
) -> Iterator[dict[str, Any]]:
    """Records with ``messages``: the user gives a sentence, the assistant its reading with the cue.

    At sentence level one record a reading; at paragraph level one a paragraph and behavior, where a sentence without
    a usable reading is given together with the next one (the recipe's separator between them).
    """
    behaviors = run.behaviors(selection.behaviors)
    for paragraph, found in paragraphs:
        numbers = range(len(paragraph.spans))
        for name, behavior in behaviors.items():
            for group in [numbers] if level == "paragraph" else [range(n, n + 1) for n in numbers]:
                messages: list[Message] = []
                given: list[str] = []
                for number in group:
                    given.append(paragraph.sentence(number))
                    if (reading := found.get((number, name))) is None:
                        continue
                    if (answer := as_taught(behavior, reading, selection.verified_only)) is None:
                        counts["left out"] += 1
                        continue
                    counts[name] += 1
                    messages.append({"role": "user", "content": run.recipe.composing.separator.join(given)})
                    messages.append({"role": "assistant", "content": behavior.cue + answer})
                    given.clear()
                if messages:
                    place = {"document": paragraph.document, "paragraph": paragraph.index}
                    if level == "sentence":
                        place["sentence"] = group[0]
                    about = {"part": part(paragraph), "language": paragraph.language or None}
                    yield {"messages": messages, "behavior": name, **place, **about}


def completions(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Conversations as prompts with completions, one for each reading: what was said before is part of its prompt."""
    for one in records:
        messages = one["messages"]
        for at in range(1, len(messages), 2):
            yield {"prompt": messages[:at], "completion": [messages[at]]}


# Line breaks to some readers of lines (`str.splitlines`), which JSON lets stand in a string as they are.
_BREAKS = {ord(mark): f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"}


def as_line(value: dict[str, Any]) -> str:
    """A record as one line of JSON, whatever its text."""
    return json.dumps(value, ensure_ascii=False).translate(_BREAKS) + "\n"


def write_lines(values: Iterable[dict[str, Any]], path: Path) -> int:
    """Write records as JSON lines; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for value in values:
            file.write(as_line(value))
            count += 1
        file.flush()
        os.fsync(file.fileno())
    return count


def check_target(path: Path, *, folder: bool, force: bool, ours: Iterable[str] = ()) -> None:
    """BrdError for a target that must not be written to.

    A file that exists is replaced by ``force`` only; so is a folder, and only where it holds nothing but ``ours``
    (names of files and folders in it).
    """
    above = path.absolute().parents
    if any(place.name == "readings" and (place / "paragraphs.parquet").exists() for place in (path, *above)):
        raise BrdError(f"{path}: lies in a run's own readings folder; choose another --out")
    if path.is_dir():
        others = sorted({entry.name for entry in path.iterdir()} - set(ours if folder else ()))
        if not folder:
            raise BrdError(f"{path}: is a folder; this format is one file, such as {path / 'readings.jsonl'}")
        if others:
            raise BrdError(f"{path}: holds other files ({others[0]}); choose another --out")
        if any(path.iterdir()) and not force:
            raise BrdError(f"{path}: exists already; --force replaces it, or choose another --out")
    elif path.exists():
        if folder:
            raise BrdError(f"{path}: is a file; this format is a folder")
        if not force:
            raise BrdError(f"{path}: exists already; --force replaces it, or choose another --out")


@contextlib.contextmanager
def whole_or_absent(path: Path) -> Iterator[Path]:
    """A scratch path beside ``path``, for a file or a folder, that takes its place when the block has ended well."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise BrdError(f"{path}: cannot be written ({error.strerror}: {error.filename})") from None
    try:
        yield scratch / "new"
        if path.is_dir():
            os.replace(path, scratch / "old")
        os.replace(scratch / "new", path)
    except BaseException:
        if (scratch / "old").exists():
            os.replace(scratch / "old", path)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def teacher_of(run: ReadRun) -> dict[str, str]:
    """The identity of the teacher that read, and its hash."""
    return dict(read_json(run.readings / "teacher.json"))
