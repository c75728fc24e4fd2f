"""What a trained student's folder says of itself (brd.json): which arm of which recipe made it."""

import hashlib
from pathlib import Path
from typing import Any

from brd.errors import BrdError
from brd.recipe import Recipe
from brd.run import read_json, write_json
from brd.training import lora

FILE = "brd.json"
CARD = "README.md"
# Of a student's folder what says nothing of its weights.
DESCRIBING = (FILE, CARD)


def read_origin(folder: Path) -> dict[str, Any] | None:
    """``recipe``, ``arm``, ``trained``, ``fingerprint``, ``licence`` and ``card`` (a hash); None of other folders."""
    found = read_json(folder / FILE)
    return found if isinstance(found, dict) and "recipe" in found else None


def write_origin(folder: Path, about: dict[str, Any], card: str) -> None:
    """Write a card and what is to be known of the folder; files that would stay as they are are not touched."""
    about = {**about, "card": _hash(card.encode())}
    if not (folder / CARD).exists() or (folder / CARD).read_bytes() != card.encode():
        scratch = folder / f"{CARD}.tmp"
        scratch.write_bytes(card.encode())
        scratch.replace(folder / CARD)
    if read_json(folder / FILE) != about:
        write_json(folder / FILE, about)


def is_edited(folder: Path) -> bool:
    """Whether somebody wrote another card than we did."""
    card, origin = folder / CARD, read_origin(folder)
    return card.exists() and (origin is None or _hash(card.read_bytes()) != origin.get("card"))


def _hash(card: bytes) -> str:
    return hashlib.sha256(card).hexdigest()


def check_start(recipe: Recipe) -> None:
    """BrdError for a student that this recipe has already taught, and for one that cannot be trained here.

    All arms, the untrained one too, would begin with what one of them is to learn.
    """
    if recipe.student.lora is not None:
        lora.check_installed()
    origin = read_origin(Path(recipe.student.model))
    if origin is not None and origin["recipe"] == recipe.name and origin.get("trained"):
        raise BrdError(
            f"student.model: {recipe.student.model} was trained by this very recipe (arm {origin['arm']}): every arm "
            "would begin with what it is to learn; name the student that it began as, or give the recipe another name "
            "to train it further"
        )
