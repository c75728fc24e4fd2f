"""Any GGUF file as a teacher, through llama.cpp's server in this process (package xllamacpp)."""

import json
import os
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from brd import embedded
from brd.errors import BrdError, TeacherUnreachable
from brd.sections.teacher import Teacher as TeacherSettings
from brd.teachers import chat
from brd.teachers.teacher import Answer

# More slots than this bring nothing on a CPU: its products do not get faster, and every slot has its own copy
# of the prefix, which it reads once.
MAX_SLOTS = 32
# A slot's length in tokens is a multiple of this, so that a slightly longer prompt needs no new server.
SLOT_STEP = 256


class LlamaCpp:
    """A GGUF model behind ``slots`` parallel slots, each of which keeps the prefix of its last prompt.

    Prefix and suffix are tokenised apart, as the protocol asks; BOS comes before the prefix where the model has
    it. Slots are as long as the longest prompt and its answer need: a longer one restarts the server. The
    server also listens on a free port of this machine's loopback address.
    """

    def __init__(
        self, file: Path, *, slots: int = MAX_SLOTS, chat_template: bool = False, threads: int | None = None
    ) -> None:
        if not file.is_file():
            raise BrdError(f"{file}: no such GGUF file (teacher.model)")
        if chat_template and not _has_template(file):
            raise BrdError("teacher.chat_template: this GGUF file has no chat template; set it to false")
        self._file, self._slots, self._chat = file, slots, chat_template
        self._threads = threads or _cores()
        self._weights = f"sha256:{embedded.file_sha256(file)}"
        self._server: Any = None
        self._slot_tokens = 0
        self._start(2 * SLOT_STEP)
        self.context_length: int = self._get("/v1/models")["data"][0]["meta"]["n_ctx_train"]

    def identity(self) -> dict[str, str]:
        return {
            "model": self._weights,
            "engine": "llama.cpp",
            "chat_template": "turns" if self._chat else "false",
            "decoding": "greedy",
        }

    def count_tokens(self, text: str) -> int:
        return len(self._tokens(text))

    def answer(
        self, prefix: str, suffixes: Sequence[str], *, stop: Sequence[str], max_new_tokens: int
    ) -> Iterator[tuple[int, Answer]]:
        """Yield ``(index, answer)`` as answers end. See ``teacher.Teacher``."""
        if self._chat:
            prefix, turn = chat.split(prefix, lambda m: str(self._get("/apply-template", messages=m)["prompt"]))
            suffixes = [turn(suffix) for suffix in suffixes]
        shared = self._tokens(prefix, add_special=not self._chat)
        prompts = [shared + self._tokens(suffix) for suffix in suffixes]
        for index, prompt in enumerate(prompts):
            if not prompt:
                raise BrdError(f"prompt {index} is empty")
            if len(prompt) + max_new_tokens > self.context_length:
                raise BrdError(
                    f"prompt {index} is longer than the teacher's context: {len(prompt)} tokens and {max_new_tokens} "
                    f"new ones, the limit is {self.context_length}"
                )
        if not prompts:
            return iter(())
        # One token more than is used: the server refuses a prompt that fills its slot.
        self._start(max(map(len, prompts)) + max_new_tokens + 1)
        return self._ask_all(prompts, list(stop), max_new_tokens)

    def _ask_all(self, prompts: list[list[int]], stop: list[str], max_new_tokens: int) -> Iterator[tuple[int, Answer]]:
        pool = ThreadPoolExecutor(self._slots, thread_name_prefix="llamacpp")
        try:
            asked: dict[Future[Answer], int] = {
                pool.submit(self._ask, prompt, stop, max_new_tokens): index for index, prompt in enumerate(prompts)
            }
            for done in as_completed(asked):
                yield asked.pop(done), done.result()
        finally:
            # What is under way ends by itself within one answer; the rest is not begun.
            pool.shutdown(wait=True, cancel_futures=True)

    def _ask(self, prompt: list[int], stop: list[str], max_new_tokens: int) -> Answer:
        request = {
            "prompt": prompt,
            "max_tokens": max_new_tokens,
            "temperature": 0.0,
            "stop": stop,
            "cache_prompt": True,
        }
        reply = self._server.handle_completions(request)
        if "error" in reply:
            raise TeacherUnreachable(f"llama.cpp refused a prompt: {reply['error'].get('message', reply['error'])}")
        choice = reply["choices"][0]
        return Answer(
            text=choice["text"],
            prompt_tokens=len(prompt),
            new_tokens=reply["usage"]["completion_tokens"],
            finished=choice["finish_reason"] == "stop",
        )

    def _start(self, slot_tokens: int) -> None:
        """A server whose slots hold ``slot_tokens`` each; the running one where that is enough."""
        if self._server is not None and slot_tokens <= self._slot_tokens:
            return
        self.close()
        self._slot_tokens = -(-slot_tokens // SLOT_STEP) * SLOT_STEP
        try:
            import xllamacpp
        except ImportError as error:
            raise BrdError("teacher.kind llamacpp needs the package xllamacpp: pip install 'brd[llamacpp]'") from error
        settings = xllamacpp.CommonParams()
        settings.model.path = str(self._file)
        settings.n_parallel = self._slots
        settings.n_ctx = self._slots * self._slot_tokens
        # Each slot its own stretch of the cache: in a unified one, attention runs over the tokens of all slots.
        settings.kv_unified = False
        # The prefix stays in every slot if slots are taken in turn, not by how much of the prompt they hold.
        settings.slot_prompt_similarity = 0.0
        settings.cache_ram_mib = 0
        settings.n_threads_http = self._slots + 1
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = self._threads
        settings.warmup = settings.ui = False
        settings.verbosity = -1
        try:
            self._server = xllamacpp.Server(settings)
        except RuntimeError as error:
            raise TeacherUnreachable(f"{self._file}: llama.cpp cannot load this file ({error})") from error
        # A server that is freed before its loop has begun is waited for without end (seen on a busy machine).
        self._server.handle_completions({"prompt": [0], "max_tokens": 1})

    def _tokens(self, text: str, add_special: bool = False) -> list[int]:
        reply = self._get("/tokenize", content=text, add_special=add_special, parse_special=True)
        return list(reply["tokens"])

    def _get(self, path: str, **body: Any) -> Any:
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(
            self._server.listening_address + path, data=data, headers={"Content-Type": "application/json"}
        )
        # The loopback address is never behind a proxy, whatever the environment says.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request) as reply:
            return json.load(reply)

    def close(self) -> None:
        """Stop the server and free the model."""
        self._server = None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _has_template(file: Path) -> bool:
    from gguf import GGUFReader

    return "tokenizer.chat_template" in GGUFReader(file).fields


def load(settings: TeacherSettings) -> LlamaCpp:
    """Start the GGUF file that a recipe names; the embedded model's name stands for its GGUF file."""
    embedded_model = settings.model == embedded.MODEL_NAME
    file = embedded.smollm2_gguf() if embedded_model else Path(settings.model).expanduser()
    return LlamaCpp(file, slots=min(settings.batch_size, MAX_SLOTS), chat_template=settings.chat_template)
