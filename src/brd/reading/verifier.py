"""Which verifier judged a reading: a hash of all that can change its verdicts, its code included."""

import ast
import contextlib
import dataclasses
import hashlib
import importlib.util
import inspect
import json
import re
import sys
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Set
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from brd.reading.behavior import Behavior, Behaviors, prompt_hash
from brd.run import fingerprint

# Python 3.11's parser keeps its depth in one place for all threads, and fails when two are in it.
_PARSING = threading.Lock()


def verifier_prints(behaviors: Behaviors, **settings: Any) -> dict[str, str]:
    """Of each behavior, in all its languages together: which one judges a reading is found by the prompt."""
    return {
        name: fingerprint("verifiers", [(prompt_hash(b), verifier_print(b, **settings)) for b in asked.values()])
        for name, asked in ((name, behaviors.each(name)) for name in behaviors)
    }


def verifier_print(behavior: Behavior, **settings: Any) -> str:
    """Changes whenever the verdicts of a behavior may: with the ``settings`` that its ``judge`` is called with, with
    what the object holds (its exemplars, the rules of its language), with the source of the modules that it is
    made of and of those that they import, with the versions of Python and of other packages that are imported.

    Rather too often than too seldom: where a source cannot be had, or what the object holds shows no lasting form, it
    is another one each time. What ``judge`` itself reads from a file is not seen; the object is to hold it.
    """
    held = _form(getattr(behavior, "__dict__", {}))
    return fingerprint("verifier", settings, held, sys.version_info[:2], _code(_made_of(type(behavior))))


def _form(value: Any, inside: tuple[int, ...] = ()) -> Any:
    """A value as JSON, the same in every process: sets have no order of their own, and what holds itself an end."""
    if id(value) in inside:
        return "..."
    inside = (*inside, id(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        held = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return [type(value).__qualname__, _form(held, inside)]
    if isinstance(value, Mapping):
        return [[_form(key, inside), _form(one, inside)] for key, one in value.items()]
    if isinstance(value, list | tuple):
        return [_form(one, inside) for one in value]
    if isinstance(value, Set):
        return ["set", *sorted(json.dumps(_form(one, inside)) for one in value)]
    # Of a long pattern `repr` shows the beginning only.
    return [value.pattern, value.flags] if isinstance(value, re.Pattern) else repr(value)


def _made_of(kind: type) -> Iterator[str]:
    """The modules of a class, of those that it inherits from, and of functions that were put into one of them."""
    for base in kind.__mro__:
        if base is not object:
            yield base.__module__
            yield from (value.__module__ for value in vars(base).values() if inspect.isfunction(value))


def _code(first: Iterable[str]) -> dict[str, Any]:
    """Hashes of these modules' files and of those that they import, by name; of packages that are installed their
    versions."""
    waiting = list(first)
    own = {_top(name) for name in [__name__, *waiting]}
    installed = _installed()
    found: dict[str, Any] = {}
    while waiting:
        name = waiting.pop()
        top = _top(name)
        if name in found or (top in sys.stdlib_module_names and top not in own):
            continue
        if top in installed and top not in own:
            found[top] = sorted(metadata.version(distribution) for distribution in set(installed[top]))
            continue
        content = _content(name)
        if content is None:
            continue
        found[name] = hashlib.sha256(content).hexdigest()
        with contextlib.suppress(SyntaxError, ValueError):
            waiting += _imports(name, content)
    return found


@cache
def _installed() -> Mapping[str, list[str]]:
    """The distributions of each package that can be imported."""
    return metadata.packages_distributions()


def _top(name: str) -> str:
    return name.partition(".")[0]


def _content(name: str) -> bytes | None:
    """A module's file; None where there is no such module, or a folder without code. Something new each time where the
    file cannot be had."""
    module = sys.modules.get(name)
    try:
        spec = importlib.util.find_spec(name) if module is None else getattr(module, "__spec__", None)
    except (ImportError, ValueError):
        return None
    file = getattr(module, "__file__", None) or getattr(spec, "origin", None)
    if file is None and (spec is not None or module is None):
        return None
    try:
        return Path(str(file)).read_bytes()
    except OSError:
        return uuid.uuid4().bytes


def _imports(name: str, content: bytes) -> Iterator[str]:
    """What a module imports, wherever in its code: modules, and names in them that may be modules."""
    with _PARSING:
        tree = ast.parse(content)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A package is itself what a module's leading dot stands for.
            up = node.level - hasattr(sys.modules.get(name), "__path__")
            parts = name.split(".")[: -up or None] if node.level else []
            base = ".".join([*parts, *filter(None, [node.module])])
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))
