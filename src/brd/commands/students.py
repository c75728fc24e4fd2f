"""What `brd export` and `brd push` do with a trained student."""

from pathlib import Path

from brd.errors import BrdError


def refuse(student: str, **others: object) -> None:
    """BrdError for options that say something of readings."""
    for option, value in others.items():
        if value not in (None, False, ""):
            raise BrdError(f"--{option.replace('_', '-')} is of readings; it does not go with --student {student}")


def export_gguf(run: Path, student: str | None, out: Path, force: bool) -> None:
    """Write a student of a run as a GGUF file."""
    from brd.console import Console
    from brd.reading.export import check_target, whole_or_absent
    from brd.students import licence_of, open_student
    from brd.training.gguf import write_gguf

    if student is None:
        raise BrdError("--format gguf is of a trained student; name its arm with --student, such as --student brd")
    pipeline, folder = open_student(run, student)
    check_target(out, folder=False, force=force)
    with Console() as console, whole_or_absent(out) as scratch:
        console.say(f"writing {folder} as GGUF")
        found = write_gguf(folder, scratch, f"{pipeline.recipe.name} {student}", licence_of(pipeline, student))
    print(
        f"{out}: arm {student}, {found['parameters']:,} parameters in {found['tensors']} tensors, float32, "
        f"{found['bytes'] / 2**20:.0f} MB"
    )


def push(
    run: Path, repository: str, student: str, licence: str | None, private: bool, dry_run: bool, force: bool
) -> None:
    """Upload a student of a run, with its card, to the Hub."""
    from brd import hub
    from brd.console import Console
    from brd.students import describe, licence_of, open_student

    hub.check_repository(repository)
    pipeline, folder = open_student(run, student)
    if licence is not None:
        hub.check_licence(licence)
    elif licence_of(pipeline, student) is None:
        raise BrdError(
            f"the licence of {pipeline.recipe.student.model} is not known; say --licence, or name it in the recipe's "
            "licences.student"
        )
    if not dry_run:
        hub.check_login()
    ours = describe(pipeline, student, licence, replace=force)
    if not ours and licence is not None:
        raise BrdError(
            f"{folder / 'README.md'}: was edited, so --licence is not written into it; write it there yourself and "
            "leave --licence out, or replace the card with --force"
        )
    with Console() as console:
        print(f"{folder}: arm {student}; README.md is {'its card' if ours else 'the card as it was edited'}")
        if dry_run:
            print("nothing was uploaded")
            return
        console.say(f"uploading {folder} to {repository}")
        message = f"Arm {student} of {pipeline.recipe.name}"
        print(hub.upload(folder, repository, "model", private=private, message=message))
