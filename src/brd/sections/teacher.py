"""The section ``teacher`` of a recipe, and ``teacher.server``."""

import json
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from brd.embedded import MODEL_NAME
from brd.errors import BrdError
from brd.sections.section import Dtype, Positive, Section, all_known

TEACHERS = ("shared_prefix", "llamacpp", "openai", "vllm")
# Arguments of vLLM's engine that say how it works and not what it answers (beyond rounding).
HARMLESS = frozenset(
    """data_parallel_size disable_log_stats download_dir enable_chunked_prefill enable_prefix_caching enforce_eager
    gpu_memory_utilization kv_cache_memory_bytes load_format max_model_len max_num_batched_tokens max_num_seqs
    max_parallel_loading_workers pipeline_parallel_size seed""".split()
)


class Server(Section):
    """The OpenAI-compatible server of a teacher of kind ``openai``.

    ``base_url`` mostly ends in /v1, which is put behind one without a path. ``key_variable`` names the environment
    variable that holds the key, which is sent nowhere where it is null. ``revision`` (any words) and ``extra`` (keys of
    every request; null takes one away) can change an answer and are part of the teacher's identity; the others are not.
    ``timeout`` is in seconds and for one whole request. ``context_length`` is asked of the server where it is null.

    ``batch`` asks by the provider's batch interface (files of requests, answered within a day, mostly at half the
    price), ``batch_requests`` of them in a file; prompts, keys and identity are the same.
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
    batch: bool = False
    batch_requests: Annotated[int, Field(ge=1, le=50_000)] = 50_000

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


class Cluster(Section):
    """The engines of a teacher of kind ``vllm``: vLLM, on the machines of a Ray cluster.

    ``revision`` (a commit of the Hub's) and ``engine`` (further arguments of vLLM's engine; but for ``HARMLESS``) can
    change an answer and are part of the teacher's identity; the others are not. ``weights`` is where every machine
    finds them, where that is not by the model's name. Each of at most so many ``engines`` has ``tensor_parallel`` GPUs,
    or one CPU for Ray with ``device`` cpu. A shard of ``shard_rows`` readings is what an interruption can cost, twice
    for each engine.
    """

    revision: str | None = None
    weights: str | None = None
    device: Literal["gpu", "cpu"] = "gpu"
    engines: Positive = 1
    tensor_parallel: Positive = 1
    engine: dict[str, Any] = {}
    shard_rows: Positive = 2000

    @field_validator("engine")
    @classmethod
    def _not_ours(cls, engine: dict[str, Any]) -> dict[str, Any]:
        ours = {"model": "teacher.model", "dtype": "teacher.dtype", "revision": "teacher.cluster.revision"}
        ours |= {"tensor_parallel_size": "teacher.cluster.tensor_parallel"}
        ours |= {"trust_remote_code": "teacher.trust_remote_code"}
        if taken := sorted(ours.keys() & engine.keys()):
            raise ValueError(f"{taken[0]!r} is set by {ours[taken[0]]}")
        try:
            json.dumps(engine, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"should be what JSON can hold ({error})") from None
        return engine


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
    """Who reads. ``kind`` is ``shared_prefix`` (any causal LM of transformers), ``llamacpp`` (any GGUF file),
    ``openai`` (``server``, which knows the model by the name ``model``) or ``vllm`` (on a ``cluster``, likewise).

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
    cluster: Cluster = Cluster()
    prices: Prices | None = None

    @field_validator("kind")
    @classmethod
    def _known(cls, name: str) -> str:
        return all_known("teacher", [name], TEACHERS)[0]

    @field_validator("model")
    @classmethod
    def _on_the_server(cls, name: str, info: Any) -> str:
        kind = info.data.get("kind")
        if kind in ("openai", "vllm") and (name.startswith("embedded:") or not name):
            where = "on the server" if kind == "openai" else "on the Hub"
            raise ValueError(f"should be the model's name {where}, where teacher.kind is {kind}")
        return name

    @field_validator("dtype")
    @classmethod
    def _of_the_engine(cls, dtype: str, info: Any) -> str:
        if info.data.get("kind") == "vllm" and dtype == "int8":
            raise ValueError("vLLM has no int8 of this kind; it should be auto, or see teacher.cluster.engine")
        return dtype

    @field_validator("server")
    @classmethod
    def _named(cls, server: Server, info: Any) -> Server:
        if info.data.get("kind") == "openai" and server.base_url is None:
            raise ValueError("base_url is missing; it should name the server, e.g. http://localhost:8000/v1")
        return server

    @property
    def named(self) -> bool:
        """Whether ``model`` is the name of something elsewhere, and never a path here."""
        return self.kind in ("openai", "vllm")

    def answering(self) -> dict[str, Any]:
        """The keys that can change an answer, for fingerprints."""
        if not self.named:
            return self.model_dump(exclude={"batch_size", "server", "cluster", "prices"})
        where: dict[str, Any] = {"server": {"revision", "extra"}}
        if self.kind == "vllm":
            where = {"dtype": True, "trust_remote_code": True, "cluster": {"revision"}}
        shared = {"kind": True, "model": True, "chat_template": True, "max_new_tokens": True}
        found = self.model_dump(include=shared | where)
        return found if self.kind == "openai" else {**found, "engine": self.engine_settings()}

    def engine_settings(self) -> dict[str, Any]:
        """The arguments of vLLM's engine that can change an answer."""
        return {key: value for key, value in self.cluster.engine.items() if key not in HARMLESS}
