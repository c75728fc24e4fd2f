"""What was measured once and is kept in brd's cache folder: one small JSON file a fact, whole or absent."""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brd.embedded import cache_folder
from brd.run import fingerprint, read_json


def recall(kind: str, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was kept under exactly these facts; None where nothing was, or where its file is damaged."""
    found = read_json(_path(kind, about))
    # Through JSON, which has no tuples.
    if not isinstance(found, dict) or found.get("about") != json.loads(json.dumps(about)):
        return None
    return found["found"] if isinstance(found.get("found"), dict) else None


def keep(kind: str, about: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Keep ``found`` in place of what was there. A folder that cannot be written to means measuring again."""
    path = _path(kind, about)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: several processes may measure the same at once.
        number, scratch = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                json.dump({"about": about, "found": found}, file, indent=2)
            os.replace(scratch, path)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise


def anything(kind: str) -> bool:
    """Whether anything of this kind was ever kept."""
    return any((cache_folder() / kind).glob("*.json"))


def _path(kind: str, about: Mapping[str, Any]) -> Path:
    return cache_folder() / kind / f"{fingerprint(about)}.json"
