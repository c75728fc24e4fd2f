"""The section ``teacher`` of a recipe, and ``teacher.server``."""

import json
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from brd.embedded import MODEL_NAME
from brd.errors import BrdError
from brd.sections.section import Dtype, Positive, Section, all_known

TEACHERS = ("shared_prefix", "llamacpp", "openai")


class Server(Section):
    """The OpenAI-compatible server of a teacher of kind ``openai``.

    ``base_url`` mostly ends in /v1, which is put behind one without a path. ``key_variable`` names the environment
    variable that holds the key, which is sent nowhere where it is null. ``revision`` (any words) and ``extra`` (keys of
    every request; null takes one away) can change an answer and are part of the teacher's identity; the others are not.
    ``timeout`` is in seconds and for one whole request. ``context_length`` is asked of the server where it is null.
    """

    base_url: str | None = None
    key_variable: str | None = None
    revision: str | None = None
    extra: dict[str, Any] = {}
    concurrency: Annotated[int, Field(ge=1, le=4096)] = 64
    timeout: Annotated[float, Field(gt=0, le=86400)] = 120.0
    retries: Annotated[int, Field(ge=0, le=100)] = 8
    ca_bundle: str | None = None
    verify_tls: bool = True
    context_length: Annotated[int, Field(ge=1)] | None = None

    @field_validator("base_url")
    @classmethod
    def _address(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            parts = urlsplit(url)
            known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            known = False
        if not known:
            raise ValueError("should be of the form http://localhost:8000/v1")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            # The value would be shown beside an ordinary error.
            raise BrdError("teacher.server.base_url: no user, password or query belongs there; see key_variable")
        return url.rstrip("/") if parts.path.strip("/") else f"{url.rstrip('/')}/v1"

    @field_validator("key_variable")
    @classmethod
    def _no_key(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            # It may be the key itself (hf_...), which an ordinary error would show.
            raise BrdError(
                "teacher.server.key_variable: should be the name of an environment variable in capitals, such as "
                "OPENAI_API_KEY; the key itself belongs into that variable only"
            )
        return name

    @field_validator("extra")
    @classmethod
    def _not_ours(cls, extra: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted({"model", "prompt", "messages", "stream", "n", "best_of", "echo"} & extra.keys()):
            raise ValueError(f"{taken[0]!r} cannot be set there")
        try:
            json.dumps(extra, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"should be what JSON can hold ({error})") from None
        return extra


Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class TokenPrices(Section):
    """What a million tokens cost; ``cached_input`` (of prompts, in the server's cache) as ``input`` where null."""

    input: Price
    cached_input: Price | None = None
    output: Price


class Prices(TokenPrices):
    """The prices of a server, for `brd plan`. ``batch``: those of the provider's batch interface, or their share."""

    currency: Annotated[str, Field(min_length=1, max_length=16)] = "USD"
    batch: Annotated[float, Field(gt=0, le=1)] | TokenPrices | None = None


class Teacher(Section):
    """Who reads. ``kind`` is ``shared_prefix`` (any causal LM of transformers), ``llamacpp`` (any GGUF file) or
    ``openai`` (``server``, which knows the model by the name ``model``).

    ``dtype`` int8 (``shared_prefix`` on a CPU): linear layers in 8-bit integers, the rest in the fast dtype. ``prices``
    are for `brd plan` only.
    """

    kind: str = "shared_prefix"
    model: Annotated[str, Field(validate_default=True)] = MODEL_NAME
    dtype: Dtype | Literal["int8"] = "auto"
    chat_template: bool = False
    batch_size: Positive = 64
    max_new_tokens: Positive = 72
    trust_remote_code: bool = False
    server: Annotated[Server, Field(validate_default=True)] = Server()
    prices: Prices | None = None

    @field_validator("kind")
    @classmethod
    def _known(cls, name: str) -> str:
        return all_known("teacher", [name], TEACHERS)[0]

    @field_validator("model")
    @classmethod
    def _on_the_server(cls, name: str, info: Any) -> str:
        if info.data.get("kind") == "openai" and (name.startswith("embedded:") or not name):
            raise ValueError("should be the model's name on the server, where teacher.kind is openai")
        return name

    @field_validator("server")
    @classmethod
    def _named(cls, server: Server, info: Any) -> Server:
        if info.data.get("kind") == "openai" and server.base_url is None:
            raise ValueError("base_url is missing; it should name the server, e.g. http://localhost:8000/v1")
        return server

    def answering(self) -> dict[str, Any]:
        """The keys that can change an answer, for fingerprints."""
        if self.kind != "openai":
            return self.model_dump(exclude={"batch_size", "server", "prices"})
        return self.model_dump(
            include={"kind": True, "model": True, "chat_template": True, "max_new_tokens": True}
            | {"server": {"revision", "extra"}}
        )
