"""A stand-in for vLLM where Ray looks for it: the engine of a Ray Data job answers what a test has written down.

Ray's own stages run around it as they do around vLLM. ``CONTROL`` (a folder, from the environment) holds ``asked``, a
line for each prompt that came in, and may hold ``wait``: words, a line each, at whose sentences the engine waits until
the file is gone.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vllm import outputs

CONTROL = Path(os.environ["CONTROL"])


class SamplingParams(SimpleNamespace):
    pass


class AsyncEngineArgs(SimpleNamespace):
    def create_engine_config(self) -> Any:
        return SimpleNamespace(
            scheduler_config=SimpleNamespace(max_num_seqs=16),
            parallel_config=SimpleNamespace(pipeline_parallel_size=1),
        )


class AsyncLLMEngine:
    @classmethod
    def from_engine_args(cls, args: Any, stat_loggers: Any = None) -> "AsyncLLMEngine":
        (CONTROL / "engine").write_text(json.dumps(vars(args), default=str))
        if (CONTROL / "broken").exists():
            raise RuntimeError("no such weights")
        return cls()

    async def generate(
        self, request_id: str, prompt: Any, sampling_params: Any, lora_request: Any = None
    ) -> AsyncIterator[Any]:
        text = prompt["prompt"]
        sentence = text.rpartition("\n\n")[2].split("\n")[0].removeprefix("Sentence: ")
        with (CONTROL / "asked").open("a") as file:
            file.write(json.dumps([text, vars(sampling_params)]) + "\n")
        wait = CONTROL / "wait"
        while wait.exists() and any(word in sentence for word in wait.read_text().split("\n")):
            await asyncio.sleep(0.01)
        if "refuse" in sentence:
            raise ValueError("the prompt is too long")
        answer = " none" if text.endswith("Entities:") else f" What is said?\nAnswer: {sentence}"
        limit = sampling_params.max_tokens
        tokens = list(range(limit if "endless" in sentence else min(limit, 5)))
        if "stopped" in sentence:
            tokens, answer = list(range(limit)), answer + sampling_params.stop[0]
        yield outputs.RequestOutput(text, [1, 2, 3], [outputs.Completion(answer, tokens)])

    async def do_log_stats(self) -> None:
        pass

    def shutdown(self) -> None:
        pass
