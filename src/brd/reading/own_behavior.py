"""A behavior in a user's own file: found, run, and checked before anything is asked (see docs/behaviors.md).

The file is run as any Python program is; that happens only where a recipe names it.
"""

import sys
import traceback
from collections.abc import Callable
from functools import cache, wraps
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from brd.errors import BrdError
from brd.reading.behavior import Behavior, Judgement, exemplar_file, exemplars
from brd.reading.languages import load_language

_ATTRIBUTES = {"name": str, "skill": str, "cue": str, "stop": tuple, "max_new_tokens": int}
_METHODS = ("suffix", "parse", "judge", "render", "is_empty", "given", "agreement")


def load(path: Path, exemplar_set: str, language: str) -> Behavior:
    """The behavior of a file, with its exemplars in a language.

    Raises BrdError for a file that is missing or fails, one that has no class or another one than its name says, for
    attributes that are missing or of a wrong kind, and for exemplars that the behavior itself does not verify.
    """
    source = _source(path)
    made_by = _behavior_class(path, source)
    file = exemplar_file(path.stem, exemplar_set, language, path.parent)
    data = exemplars(path.stem, exemplar_set, language, path.parent)
    try:
        behavior: Behavior = made_by(data, load_language(language))
    except Exception as error:
        raise BrdError(f"{path}: cannot be made from {file}: {_told(error, path)}") from None
    _check(behavior, data, path, file)
    return behavior


def stamp(path: Path) -> str:
    """Changes whenever the file does; its exemplars are part of the prompt's hash."""
    return sha256(_source(path).encode()).hexdigest()[:16]


def _source(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BrdError(f"reading.behaviors: {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BrdError(f"reading.behaviors: {path}: cannot be read ({error})") from None


@cache
def _behavior_class(path: Path, source: str) -> Callable[..., Behavior]:
    """The class in a source, whose methods tell the file and line when they fail. Compiled here, so that no cache of
    compiled files can be older than the source."""
    module = ModuleType(f"brd_own_{path.stem}_{sha256(source.encode()).hexdigest()[:8]}")
    module.__file__ = str(path)
    # Dataclasses look their module up there.
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except Exception as error:
        raise BrdError(f"{path}: cannot be run: {_told(error, path)}") from None
    own = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    named = [c for c in own if getattr(c, "name", None) == path.stem]
    if len(named) != 1:
        there = f"its classes: {', '.join(c.__name__ for c in own)}" if own else "it has no class"
        raise BrdError(
            f"{path}: should have one class with `name = {path.stem!r}`, as the file is called ({there}; see "
            "docs/behaviors.md)"
        )
    cls = named[0]
    missing = [key for key in (*_ATTRIBUTES, *_METHODS) if not hasattr(cls, key)]
    if missing:
        raise BrdError(f"{path}: class {cls.__name__} has no {', '.join(missing)} (see docs/behaviors.md)")
    for key, kind in _ATTRIBUTES.items():
        value = getattr(cls, key)
        texts = value if isinstance(value, tuple) else ()
        if not isinstance(value, kind) or not value or not all(isinstance(text, str) and text for text in texts):
            what = {str: "a text", tuple: "a tuple of texts", int: "a number above 0"}[kind]
            raise BrdError(f"{path}: class {cls.__name__}: {key} should be {what} (got {value!r})")
    return _guarded(cls, path)


def _guarded(cls: type, path: Path) -> Callable[..., Behavior]:
    def told(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*arguments: Any, **options: Any) -> Any:
            try:
                found = method(*arguments, **options)
                # What fails while it is gone through should fail here.
                return list(found) if method.__name__ == "traits" else found
            except Exception as error:
                raise BrdError(f"{path}: {method.__name__} failed: {_told(error, path)}") from None

        return call

    original = cls.judge  # type: ignore[attr-defined]

    def judge(self: Any, raw: str, sentence: str, *, finished: bool = True, drop_bad_parts: bool = True) -> Judgement:
        try:
            found = original(self, raw, sentence, finished=finished, drop_bad_parts=drop_bad_parts)
        except Exception as error:
            # The answer was paid for: it is kept, and judged anew once the file is mended.
            return Judgement("malformed", f"judge failed: {_told(error, path)}", None, 0, 0)
        if not isinstance(found, Judgement):
            return Judgement("malformed", f"judge failed: {path.name} gives {type(found).__name__}", None, 0, 0)
        return found

    names = [name for name in (*_METHODS, "traits") if callable(getattr(cls, name, None))]
    members: dict[str, Any] = {name: told(getattr(cls, name)) for name in names} | {"judge": judge}
    return type(cls.__name__, (cls,), members)


def _told(error: Exception, path: Path) -> str:
    """An error in a line, with the last line of the file that it went through."""
    if isinstance(error, BrdError):
        return str(error)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
    what = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{path.name}{f':{line}' if line else ''}: {type(error).__name__}: {' '.join(what.split()) or '-'}"


def _check(behavior: Behavior, data: dict[str, Any], path: Path, file: Path) -> None:
    """The exemplars as a teacher will see them: each should be an answer that the behavior verifies."""
    if not isinstance(getattr(behavior, "prefix", None), str) or not behavior.prefix.endswith("\n\n"):
        raise BrdError(f"{path}: prefix should be a text that ends with a blank line; `few_shot` makes one")
    if not behavior.suffix("A sentence.").endswith(behavior.cue):
        raise BrdError(f"{path}: suffix(sentence) should end with the cue {behavior.cue!r}")
    blocks = behavior.prefix.removesuffix("\n\n").split("\n\n")[1:]
    shown = data.get("exemplars") or []
    if not blocks or len(blocks) != len(shown):
        raise BrdError(f"{file}: should have exemplars, none with a blank line in it ({len(blocks)} of {len(shown)})")
    for number, (block, exemplar) in enumerate(zip(blocks, shown, strict=True), start=1):
        answer = block.removeprefix(behavior.suffix(exemplar["sentence"]))
        if stop := next((stop for stop in behavior.stop if stop in answer), None):
            raise BrdError(f"{file}: exemplar {number}: its reading holds {stop!r}, at which a teacher is stopped")
        judgement = behavior.judge(answer, exemplar["sentence"])
        if judgement.verdict != "verified":
            raise BrdError(f"{file}: exemplar {number}: the behavior itself does not verify it ({judgement.reason})")
        content = behavior.parse(answer)
        if content is None or behavior.parse(behavior.render(content)) != content:
            raise BrdError(f"{file}: exemplar {number}: parse(render(content)) is not the content")
