"""What all sections share."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from brd.errors import nearest

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def all_known(kind: str, names: list[str], known: tuple[str, ...]) -> list[str]:
    """The same names; a ValueError tells which one is unknown or named twice."""
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {kind} {name!r}; {nearest(name, known)}")
    if len(set(names)) < len(names):
        raise ValueError(f"a {kind} is named twice")
    return names
