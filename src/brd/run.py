"""A run folder: which steps are current (fingerprints), what they took, and the provenance of it all."""

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from brd.errors import BrdError
from brd.recipe import Recipe, dump

PACKAGES = (
    "brd",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "pyarrow",
    "numpy",
    "sentencex",
    "xllamacpp",
    "peft",
    "py3langid",
    "datasketch",
    "phonenumbers",
    "trl",
)


def fingerprint(*parts: Any) -> str:
    """A short hash of JSON-like values: equal values give equal fingerprints."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is whole, or what it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is whole or absent."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    # Not only of JSON: bytes that are no text, too.
    except (OSError, ValueError):
        return None


class RunFolder:
    """The folder of one recipe's run. A step's manifest is written last: no manifest, or another fingerprint, means
    that the step has to run."""

    def __init__(self, path: Path, recipe: Recipe, *, fresh: bool = False) -> None:
        self.path = path
        _refuse_other(path, recipe.name)
        if fresh and path.exists():
            path.rename(path.with_name(f"{path.name}.before-{datetime.now():%Y%m%d-%H%M%S}"))
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / "recipe.yaml", dump(recipe))

    def manifest(self, step: str) -> dict[str, Any] | None:
        found = read_json(self.path / "steps" / f"{step}.json")
        return found if isinstance(found, dict) else None

    def is_current(self, step: str, wanted: str, *outputs: Path) -> bool:
        manifest = self.manifest(step)
        return bool(manifest and manifest["fingerprint"] == wanted and all(o.exists() for o in outputs))

    def do(
        self,
        step: str,
        wanted: str,
        outputs: list[Path],
        work: Callable[[], dict[str, Any]],
        say: Callable[[str], None],
    ) -> dict[str, Any]:
        """Run a step unless it is current; returns its manifest."""
        manifest = self.manifest(step)
        if manifest and self.is_current(step, wanted, *outputs):
            say(f"{step}: up to date, skipped")
            return manifest
        say(f"{step}: started")
        self.forget(step)
        start = time.perf_counter()
        result = work()
        seconds = round(time.perf_counter() - start, 2)
        manifest = {"fingerprint": wanted, "seconds": seconds, "peak_rss_mb": peak_rss_mb(), "result": result}
        write_json(self.path / "steps" / f"{step}.json", manifest)
        self.log({"step": step, "event": "done", "seconds": seconds})
        say(f"{step}: done in {seconds:.1f} s")
        return manifest

    def forget(self, step: str) -> None:
        """Have a step count as not done."""
        (self.path / "steps" / f"{step}.json").unlink(missing_ok=True)

    def log(self, event: dict[str, Any]) -> None:
        """Append to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 3), **event}) + "\n")


def set_aside(path: Path) -> bool:
    """Whether a folder is one that ``fresh`` has moved aside, by its name."""
    return re.search(r"\.before-\d{8}-\d{6}$", path.name) is not None


def _refuse_other(path: Path, name: str) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise BrdError(f"{path}: is a file; --out takes a folder")
    recipe = path / "recipe.yaml"
    if recipe.exists():
        try:
            other = yaml.safe_load(recipe.read_text(encoding="utf-8")).get("name")
        except (yaml.YAMLError, AttributeError, UnicodeDecodeError):
            other = None
        if other != name:
            raise BrdError(f"{path}: holds the run of another recipe ({other!r}, not {name!r}); choose another --out")
    elif any(path.iterdir()):
        raise BrdError(f"{path}: is not empty and no run folder; choose another --out")


def peak_rss_mb() -> float:
    """The most memory that this process has held so far, in MB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 if sys.platform != "darwin" else 1024**2), 1)


def provenance() -> dict[str, Any]:
    """Versions, commit and hardware, for run.json."""
    from brd import hardware

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions,
        "commit": _commit(),
        "hardware": hardware.describe(),
    }


def _commit() -> str | None:
    """The commit of the source tree that runs, with a + where it was changed; None outside a checkout."""
    here = Path(__file__).parent
    try:
        tracked = subprocess.run(["git", "ls-files", "--error-unmatch", __file__], cwd=here, capture_output=True)
        if tracked.returncode:
            return None
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True)
        return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None
