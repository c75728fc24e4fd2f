"""The errors a user can meet: one helpful line each, and the exit code that goes with it."""


class BrdError(Exception):
    """Wrong input or configuration. The message names the file, key or line, and what would be right."""

    exit_code = 2


class TeacherUnreachable(BrdError):
    """The teacher could not be started or reached; what was read so far is kept."""

    exit_code = 3


def nearest(word: str, known: "list[str] | tuple[str, ...]") -> str:
    """A ', did you mean ...?' phrase for a mistyped word, or the list of what is known."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
