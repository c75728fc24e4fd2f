"""The commands that hand on what was read, or who was trained on it: `brd export`, `brd push`."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from brd.commands import students
from brd.errors import BrdError, nearest

if TYPE_CHECKING:
    from brd.console import Console
    from brd.reading.export import Level, ReadRun, Selection

FORMATS = ("jsonl", "chat", "trl", "parquet", "gguf")

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder whose step `read` was run.")]
Behaviors = Annotated[
    str | None, typer.Option("--behaviors", help="Of these only, comma between them; all that were read unless given.")
]
Student = Annotated[str | None, typer.Option("--student", metavar="ARM", help="The trained student of this arm.")]
Verified = Annotated[
    bool | None, typer.Option("--verified/--all", help="Verified readings only, or rejected and malformed ones too.")
]


def export(
    run: Run,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="jsonl, chat (messages), trl (for its SFTTrainer), parquet (for reading.known); gguf, of a --student.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The file that is written; for trl a folder.")],
    behaviors: Behaviors = None,
    verified: Verified = None,
    part: Annotated[
        str | None,
        typer.Option("--part", help="train, held_out or all; train unless given, all in format parquet."),
    ] = None,
    level: Annotated[
        str | None,
        typer.Option("--level", help="sentence or paragraph: how much is one record of chat and trl."),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="With trl: prompts and completions instead of lessons.")] = False,
    note: Annotated[
        str | None, typer.Option("--note", help="With parquet: source and licence of the sentences, kept in the file.")
    ] = None,
    student: Student = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what stands at --out.")] = False,
) -> None:
    """Readings for other programs: records, conversations, lessons for TRL, a file that other runs take. Or a student
    for llama.cpp."""
    from brd.console import Console
    from brd.reading import export as to

    if format_ == "gguf":
        kinds = {"behaviors": behaviors, "verified": verified is not None, "part": part}
        students.refuse(student or "ARM", **kinds, level=level, chat=chat, note=note)
        students.export_gguf(run, student, out, force)
        return
    _check_options(format_, level, chat, note)
    if student is not None:
        raise BrdError(f"--student goes with --format gguf; {format_} is of readings")
    found = to.open_run(run)
    everything = format_ == "parquet"
    selected = to.select(
        found,
        behaviors,
        part or ("all" if everything else "train"),
        not everything if verified is None else verified,
    )
    names = [f"{name}.jsonl" for name in to.SPLITS.values()]
    to.check_target(out, folder=format_ == "trl", force=force, ours=names)
    with Console() as console, to.whole_or_absent(out) as scratch:
        if format_ == "trl":
            lines = _trl(found, selected, verified, cast("Level | None", level), chat, scratch, console)
        else:
            lines = [_file(found, selected, format_, cast("Level", level or "sentence"), note or "", scratch, console)]
    print("\n".join(f"{out}: {line}" for line in lines))


def _check_options(format_: str, level: str | None, chat: bool, note: str | None) -> None:
    if format_ not in FORMATS:
        raise BrdError(f"--format {format_}: no such format; {nearest(format_, FORMATS)}")
    if level not in (None, "sentence", "paragraph"):
        raise BrdError(f"--level {level}: no such level; it should be sentence or paragraph")
    if level and format_ not in ("chat", "trl"):
        raise BrdError(f"--level goes with --format chat or trl; a record of {format_} is one reading")
    if chat and format_ != "trl":
        raise BrdError("--chat goes with --format trl; --format chat needs nothing more")
    if note is not None and format_ != "parquet":
        raise BrdError(f"--note goes with --format parquet; a file of {format_} has no place for it")
    if format_ == "parquet" and not (note or "").strip():
        raise BrdError(
            "--format parquet needs --note: source and licence of the sentences, for whoever gets the file "
            '(--note "Sentences of English Wikipedia, CC BY-SA 4.0")'
        )


def _file(
    run: "ReadRun", selected: "Selection", format_: str, level: "Level", note: str, path: Path, console: "Console"
) -> str:
    """Write the one file of a format; returns what to say of it."""
    from brd.reading import export as to
    from brd.reading import store

    counts: Counter[str] = Counter()
    if format_ == "parquet":
        count = store.export(_told(to.distinct(run, selected), counts), path, note)
    else:
        paragraphs = to.stream(run, selected, _progress(console))
        if format_ == "chat":
            values = to.conversations(run, paragraphs, selected, level, counts)
        else:
            values = to.records(paragraphs, selected, counts)
        count = to.write_lines(values, path)
    if not count:
        raise _nothing(run, selected)
    return _line(count, "readings" if format_ == "parquet" else "records", counts, selected)


def _trl(
    run: "ReadRun",
    selected: "Selection",
    verified: bool | None,
    level: "Level | None",
    chat: bool,
    folder: Path,
    console: "Console",
) -> list[str]:
    """Write a file for each part into the folder; returns what to say of them."""
    from dataclasses import replace

    from brd.composing.export import Lessons
    from brd.reading import export as to

    folder.mkdir()
    lessons = None if chat else Lessons(run, selected.behaviors, level, verified)
    said = []
    for part in selected.parts():
        one, counts = replace(selected, part=part), Counter[str]()
        file = folder / f"{to.SPLITS[part]}.jsonl"
        if lessons is None:
            paragraphs = to.stream(run, one, _progress(console))
            talk = to.conversations(run, paragraphs, one, level or "sentence", counts)
            count = readings = to.write_lines(to.completions(talk), file)
        else:
            count, readings = to.write_lines(lessons.records(part == "held_out", counts), file), counts["readings"]
        if not readings:
            raise _nothing(run, one)
        said.append(f"{file.name}, {_line(count, 'records' if chat else 'lessons', counts, one)}")
    return said


def _told(readings: Any, counts: Counter[str]) -> Any:
    for reading, language in readings:
        counts[reading.behavior] += 1
        yield reading, language


def _progress(console: "Console") -> Any:
    return lambda done: console.progress("paragraphs", done, None)


def _line(count: int, what: str, counts: Counter[str], selected: "Selection") -> str:
    kinds = ", ".join(f"{name} {counts[name]}" for name in ("original", *selected.behaviors) if counts[name])
    said = f"{count} {what} of part {selected.part} ({kinds})"
    if counts["readings"]:
        said += f" with {counts['readings']} readings"
    if counts["left out"]:
        said += f"; {counts['left out']} readings that are not verified left out (--all takes them)"
    return said


def _nothing(run: "ReadRun", selected: "Selection") -> BrdError:
    what = f"readings of {', '.join(selected.behaviors)} in part {selected.part}"
    if selected.verified_only:
        return BrdError(f"{run.path}: no verified {what}; --all takes rejected and malformed ones too")
    return BrdError(f"{run.path}: no {what}")


def push(
    run: Run,
    repo_id: Annotated[
        str, typer.Argument(metavar="REPO_ID", help="OWNER/NAME of the dataset, or of the model, on the Hub.")
    ],
    licence: Annotated[
        str | None,
        typer.Option("--licence", help="Of text and readings, or the student: the Hub's name, such as cc-by-sa-4.0."),
    ] = None,
    student: Student = None,
    note: Annotated[str, typer.Option("--note", help="Where the text comes from, for the card.")] = "",
    behaviors: Behaviors = None,
    verified: Verified = False,
    part: Annotated[str, typer.Option("--part", help="train, held_out or all.")] = "all",
    out: Annotated[Path | None, typer.Option("--out", help="The folder; RUN/export unless given.")] = None,
    private: Annotated[bool, typer.Option("--private", help="A new dataset is private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the folder, upload nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder whose card is another.")] = False,
) -> None:
    """Readings to a dataset of the Hugging Face Hub, or a student to a model, with a card. Needs HF_TOKEN or `hf auth
    login`."""
    from brd import hub
    from brd.console import Console
    from brd.reading import export as to
    from brd.reading.card import Given, write_dataset

    if student is not None:
        students.refuse(student, note=note, behaviors=behaviors, verified=verified, out=out, part=part != "all")
        students.push(run, repo_id, student, licence, private, dry_run, force)
        return
    if licence is None:
        raise BrdError("--licence of text and readings is needed: an identifier of the Hub, such as cc-by-sa-4.0")
    given = Given(hub.check_repository(repo_id), hub.check_licence(licence), note)
    found = to.open_run(run)
    selected = to.select(found, behaviors, part, bool(verified))
    if not dry_run:
        hub.check_login()
    folder = out if out is not None else run / "export"
    to.check_target(folder, folder=True, force=True, ours=["README.md", "data"])
    with Console() as console:
        with to.whole_or_absent(folder) as scratch:
            counts = write_dataset(found, selected, given, scratch, _progress(console))
            if not counts:
                raise _nothing(found, selected)
            _keep_card(folder, scratch, force)
        for name, numbers in counts.items():
            verified_too = sum(number for key, number in numbers.items() if key.endswith(".verified"))
            print(f"{folder}: {to.SPLITS[name]}, {numbers['readings']} readings, {verified_too} of them verified")
        if dry_run:
            print(f"{folder}/README.md is the card; nothing was uploaded")
            return
        console.say(f"uploading {folder} to {repo_id}")
        message = f"Readings of {found.recipe.name}"
        print(hub.upload(folder, repo_id, "dataset", private=private, message=message))


def _keep_card(old: Path, new: Path, force: bool) -> None:
    """BrdError where a card that somebody may have worked on would be lost."""
    before, after = old / "README.md", new / "README.md"
    if not force and before.exists() and before.read_bytes() != after.read_bytes():
        raise BrdError(
            f"{before}: is not the card that this run would get now; --force replaces the folder, or upload it as it "
            f"is with `hf upload OWNER/NAME {old} --repo-type dataset`"
        )
