"""vLLM on the machines of a Ray cluster, fed by Ray Data: the teacher of kind ``vllm``.

Ray starts the engines, hands out the questions and brings back the answers, in whatever order. The workers need Ray and
vLLM only: what is run there is sent to them. Where a cluster is running here (or RAY_ADDRESS names one) it is used,
else this machine is the cluster.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brd.errors import BrdError, TeacherUnreachable
from brd.sections.teacher import Teacher as TeacherSettings
from brd.teachers import chat
from brd.teachers.openai import BYTES_A_TOKEN, CONTEXT_LENGTH
from brd.teachers.teacher import Answer, Prompt

MISSING = "Ray is not installed here: pip install 'brd[ray]' (and vllm on the machines with GPUs)"
# Shards that an engine has at once: one that is answered, and the next, so that the end of one leaves no gap.
AHEAD = 2
# What vLLM raises for a question that it does not take, by the name, which is all that Ray hands on of it.
_REFUSALS = ("VLLMValidationError", "VLLMUnprocessableEntityError", "ValueError")


@dataclass(frozen=True, slots=True)
class Row:
    """The answer to one question, which is found by ``key`` and ``shard``; ``error`` says why there is none: vLLM
    refused the question, or (``failed``) was not able to answer any."""

    key: str
    shard: str
    answer: Answer
    error: str
    failed: bool = False


class RayData:
    """The Teacher protocol for few questions (``brd preview``, ``brd audit``): each call starts engines anew. A corpus
    is read by shards (``reading.shards``)."""

    def __init__(self, settings: TeacherSettings) -> None:
        self._settings = settings

    @property
    def context_length(self) -> int:
        """What the recipe allows the engine (``max_model_len``); the model's own length is not asked."""
        return int(self._settings.cluster.engine.get("max_model_len", CONTEXT_LENGTH))

    def identity(self) -> dict[str, str]:
        return identity(self._settings)

    def count_tokens(self, text: str) -> int:
        """One for each ``BYTES_A_TOKEN`` bytes: an estimate."""
        return -(-len(text.encode("utf-8", "replace")) // BYTES_A_TOKEN)

    def answer(
        self, prefix: str, suffixes: Sequence[str], *, stop: Sequence[str], max_new_tokens: int
    ) -> Iterator[tuple[int, Answer]]:
        """Yield ``(index, answer)`` as answers arrive. See ``teacher.Teacher``."""
        if not suffixes:
            return
        ray = start()
        rows = [{"key": str(n), "prompt_hash": "", "suffix": s, "shard": ""} for n, s in enumerate(suffixes)]
        prompts = {"": Prompt(prefix, tuple(stop), max_new_tokens)}
        for row in answers(self._settings, prompts, ray.data.from_items(rows)):
            if row.failed:
                raise TeacherUnreachable(f"teacher.kind vllm: an engine failed ({row.error})")
            yield int(row.key), row.answer

    def close(self) -> None:
        """Nothing stays open between calls; the cluster belongs to whoever started it."""


def start() -> Any:
    """The module ``ray``, connected to a cluster. Raises BrdError where it is not installed."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise BrdError(f"teacher.kind vllm: {MISSING}") from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Ray gives up after half an hour in which no shard moves: less than machines or a large model may take to come.
    context.execution_no_progress_timeout_s = -1
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            raise TeacherUnreachable(f"teacher.kind vllm: no Ray cluster ({_line(error)})") from None
    return ray


def read_files(settings: TeacherSettings, prompts: Mapping[str, Prompt], files: Sequence[Path]) -> Iterator[Row]:
    """The answers to the questions of Parquet files (columns key, prompt_hash, suffix, shard), in any order but a file
    at a time. Every machine has to see the files under the same path."""
    ray = start()

    def content(table: Any) -> Any:
        import pyarrow.parquet as pq

        return pq.read_table(table["file"][0].as_py(), columns=["key", "prompt_hash", "suffix", "shard"])

    # Ray's own reader puts small files together, and what is answered together is lost together.
    names = ray.data.from_items([{"file": str(f.resolve())} for f in files], override_num_blocks=len(files))
    yield from answers(settings, prompts, names.map_batches(content, batch_size=1, batch_format="pyarrow"))


def answers(settings: TeacherSettings, prompts: Mapping[str, Prompt], dataset: Any) -> Iterator[Row]:
    """The answers to a Ray Dataset of questions, as they come.

    A question that vLLM refuses (too long for its context) is an empty unfinished answer with an ``error``; so is one
    at which an engine failed, which is marked. Raises TeacherUnreachable where no engine can be started or all is lost.
    """
    import ray

    # Ray keeps all of it in its own log (/tmp/ray/session_latest/logs); here it would stand between our lines.
    logging.getLogger("ray.llm").addHandler(logging.NullHandler())
    root = logging.getLogger().level
    from ray.data.llm import build_processor

    logging.getLogger().setLevel(root)
    for name in ("ray._private.worker", "ray.data", "ray.llm"):
        logging.getLogger(name).setLevel(logging.ERROR)
    before, after = _stages(settings, prompts)
    gpus, wanted = ray.cluster_resources().get("GPU", 0), settings.cluster.tensor_parallel
    if settings.cluster.device == "gpu" and gpus < wanted:
        told = f"the Ray cluster has {gpus:g} GPUs and an engine needs {wanted}: waiting for more to join it"
        print(f"{told} (teacher.cluster.device cpu needs none)", file=sys.stderr, flush=True)
    try:
        processor = build_processor(_processor(settings), preprocess=before, postprocess=after)
        # Without a look ahead, which would keep what is answered back until more is.
        for block in processor(dataset).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from map(_row, block.to_pylist())
    except Exception as error:
        # Of Ray's many kinds of errors (no engine, a lost machine, an error in a worker) none is of this program.
        raise TeacherUnreachable(
            f"teacher.kind vllm: {_line(error)}; shards that were whole are kept, and the same command reads the rest"
        ) from error


def _row(row: dict[str, Any]) -> Row:
    if error := row.get("__inference_error__"):
        failed = not error.startswith(tuple(f"{name}:" for name in _REFUSALS))
        return Row(row["key"], row["shard"], Answer("", 0, 0, False), _line(error), failed)
    return Row(
        row["key"], row["shard"], Answer(row["raw"], row["prompt_tokens"], row["new_tokens"], row["finished"]), ""
    )


def _processor(settings: TeacherSettings) -> Any:
    from ray.data.llm import vLLMEngineProcessorConfig

    cluster = settings.cluster
    engine = {"dtype": settings.dtype, "enable_prefix_caching": True, **cluster.engine}
    if cluster.revision:
        engine |= {"revision": cluster.revision, "tokenizer_revision": cluster.revision}
    if settings.trust_remote_code:
        engine["trust_remote_code"] = True
    if cluster.device == "cpu":
        where: dict[str, Any] = {"placement_group_config": {"bundles": [{"CPU": 1}]}}
    else:
        engine["tensor_parallel_size"] = cluster.tensor_parallel
        where = {}
    return vLLMEngineProcessorConfig(
        model_source=cluster.weights or settings.model,
        engine_kwargs=engine,
        batch_size=settings.batch_size,
        concurrency=cluster.engines,
        max_tasks_in_flight_per_actor=AHEAD,
        should_continue_on_error=True,
        log_engine_metrics=False,
        # Prompts are whole texts, which the engine tokenises.
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        **where,
    )


def _stages(settings: TeacherSettings, prompts: Mapping[str, Prompt]) -> tuple[Any, Any]:
    """What is done to a row before and after the engine. Nested functions travel to the workers by value, so these
    use nothing of this package."""
    render = _template(settings) if settings.chat_template else None
    asked = {}
    for mark, one in prompts.items():
        prefix, turn = chat.split(one.prefix, render) if render else (one.prefix, None)
        asked[mark] = (prefix, turn, list(one.stop), one.max_new_tokens)

    def before(row: dict[str, Any]) -> dict[str, Any]:
        prefix, turn, stop, limit = asked[row["prompt_hash"]]
        suffix = turn(row["suffix"]) if turn else row["suffix"]
        # The stop string tells an answer that ended with the last token it was allowed from one that was cut there.
        sampling = {"temperature": 0.0, "max_tokens": limit, "stop": stop, "include_stop_str_in_output": True}
        return {"prompt": prefix + suffix, "sampling_params": sampling}

    def after(row: dict[str, Any]) -> dict[str, Any]:
        _, _, stop, limit = asked[row["prompt_hash"]]
        text, count = row["generated_text"], int(row["num_generated_tokens"])
        ends = [place for place in (text.find(s) for s in stop) if place >= 0]
        return {
            "key": row["key"],
            "shard": row["shard"],
            "raw": text[: min(ends)] if ends else text,
            "finished": bool(ends) or count < limit,
            "prompt_tokens": int(row["num_input_tokens"]),
            "new_tokens": count,
        }

    return before, after


def _template(settings: TeacherSettings) -> chat.Render:
    """Fills in the model's chat template, without the BOS token that the engine puts before every text."""
    from transformers import AutoTokenizer

    name = settings.cluster.weights or settings.model
    options = {"trust_remote_code": settings.trust_remote_code, "revision": settings.cluster.revision or "main"}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise TeacherUnreachable(f"teacher.model {name!r}: its tokenizer cannot be loaded ({_line(error)})") from None
    if not tokenizer.chat_template:
        raise BrdError("teacher.chat_template: this model's tokenizer has no chat template; set it to false")
    added = tokenizer("")["input_ids"]
    first = tokenizer.bos_token if added and added[0] == tokenizer.bos_token_id else ""

    def render(messages: list[chat.Message]) -> str:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return text.removeprefix(first or "")

    return render


def _line(error: object) -> str:
    """The last line of an error, which is where Ray puts the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if len(lines[-1]) <= 300 else lines[-1][:299] + "…"


def identity(settings: TeacherSettings) -> dict[str, str]:
    """All that is known to change an answer: the model by its name, not where its weights lie."""
    return {
        "model": settings.model,
        "engine": "vllm",
        "revision": settings.cluster.revision or "",
        "dtype": settings.dtype,
        "settings": json.dumps(settings.engine_settings(), sort_keys=True),
        "chat_template": str(settings.chat_template).lower(),
        "decoding": "greedy",
    }


def load(settings: TeacherSettings) -> RayData:
    """The teacher that a recipe names. Nothing is started yet."""
    return RayData(settings)
