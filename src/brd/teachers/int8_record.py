"""Whether a teacher may read in int8: what a check has found (`brd check-int8`), and what this processor does fast."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from brd import hardware, remembered

KIND = "int8"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a check is about: a teacher and one prompt. ``dtype`` is the full one that int8 is compared with."""

    weights: str
    chat_template: bool
    dtype: str
    prompt_hash: str
    max_new_tokens: int

    def about(self) -> dict[str, Any]:
        return asdict(self)


def full_dtype() -> str:
    """The dtype that a teacher reads in here where not in int8."""
    return hardware.dtype_name(hardware.fast_dtype())


def recorded(asked: Asked) -> dict[str, Any] | None:
    """The last check: ``passed``, what ``faster`` looks at, and its figures; None where there was none."""
    found = remembered.recall(KIND, asked.about())
    return found if found and isinstance(found.get("passed"), bool) and isinstance(found.get("layers"), list) else None


def record(asked: Asked, found: Mapping[str, Any]) -> None:
    remembered.keep(KIND, asked.about(), found)


def faster(found: Mapping[str, Any]) -> float:
    """How many times as fast as in the full dtype a teacher reads in int8 on this machine.

    By the readings of the check where it was made here (``processor``, ``rates``: readings a second by dtype), else by
    the time of the linear layers (``layers``) alone.
    """
    full, rates = full_dtype(), found.get("rates") or {}
    if found.get("processor") == hardware.processor() and rates.get("int8") and rates.get(full):
        return float(rates["int8"] / rates[full])
    from brd.inference.speed import linear_seconds

    seconds = linear_seconds(found["layers"])
    return seconds[full] / seconds["int8"]


def may_read(weights: str, chat_template: bool, prompts: Iterable[tuple[str, int]]) -> bool:
    """Whether int8 is to be taken: a passed check of each prompt (its hash, the limit of new tokens) is on record, and
    int8 is faster here by a fifth or more. Nothing is loaded."""
    if hardware.device().type != "cpu":
        return False
    dtype = full_dtype()
    found = [recorded(Asked(weights, chat_template, dtype, *prompt)) for prompt in prompts]
    return bool(found) and all(one and one["passed"] and faster(one) >= hardware.FASTER for one in found)
