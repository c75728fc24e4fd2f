"""A model behind any OpenAI-compatible server (vLLM, SGLang, llama.cpp, TGI, Ollama, OpenAI) as a teacher.

The few-shot prefix comes first and is the same in all requests, so that a server with a prefix cache reads it once.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from brd.errors import BrdError, TeacherUnreachable, nearest
from brd.sections.teacher import Teacher as TeacherSettings
from brd.teachers import chat
from brd.teachers.client import Client, Refused
from brd.teachers.teacher import Answer

# What is assumed where neither the recipe nor the server tells.
CONTEXT_LENGTH = 4096
# Bytes of UTF-8 a token, where the server does not count: rather too many tokens than too few.
BYTES_A_TOKEN = 3
# Statuses by which servers refuse a prompt (too long, filtered), but also a key of the request that they do not know.
OF_A_PROMPT = (400, 413, 422)
# Ends of an answer by itself, in the words of different servers (some say nothing).
_ENDED = ("stop", "eos_token", "stop_sequence", None)
# A prompt that any server takes whose prefix and settings it takes.
_PLAIN = "."
# Token counts are kept as 32-bit integers.
_MOST_TOKENS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Asking:
    """How the sentences of a behavior are asked, one by one or many in a file: where, by which body, and what the
    answer is in a reply (ValueError for one that is none)."""

    path: str
    body: Callable[[str], dict[str, Any]]
    read: Callable[[Any, str], Answer]


@dataclass(frozen=True, slots=True)
class _Form:
    """How a suffix is asked: where, by which keys, and what the reply says."""

    path: str
    body: Callable[[str], dict[str, Any]]
    text: Callable[[dict[str, Any], str], str]


class OpenAI:
    """The model that a server calls ``settings.model``; with ``chat_template`` exemplars are turns (``teachers.chat``).

    A prompt is one text, which the server tokenises whole. In a conversation nobody begins the assistant's answer for
    it, so an answer may repeat the cue, which is then taken off. What a server refuses of one sentence only (too long,
    filtered) is an empty unfinished answer; what it would refuse of any sentence is raised.
    """

    def __init__(self, settings: TeacherSettings, key: str | None) -> None:
        self._settings, self._server = settings, settings.server
        self.client = Client(settings.server, key)
        self._system: bool | None = None
        self._counts: Callable[[str], int | None] | None = None

    def identity(self) -> dict[str, str]:
        return identity(self._settings)

    @cached_property
    def context_length(self) -> int:
        """The recipe's where it says one, else the server's, else ``CONTEXT_LENGTH``."""
        if self._server.context_length:
            return self._server.context_length
        models = _get(self.client.fetch(f"{self.client.base}/models"), "data")
        ours = [m for m in models if _get(m, "id") == self._settings.model] if isinstance(models, list) else []
        told: list[Any] = [_get(m, key) for m in ours for key in ("max_model_len", "context_length", "context_window")]
        if not any(map(_count, told)):
            # llama.cpp (of one slot), then TGI.
            told = [
                _get(self.client.fetch(f"{self.client.root}/props"), "default_generation_settings", "n_ctx"),
                _get(self.client.fetch(f"{self.client.root}/info"), "max_total_tokens"),
            ]
        return next(filter(None, map(_count, told)), CONTEXT_LENGTH)

    def count_tokens(self, text: str) -> int:
        """The server's count, or where it does not count, one for each ``BYTES_A_TOKEN`` bytes: an estimate."""
        if self._counts is None:
            ways = (self._by_prompt, self._by_content, self._by_inputs)
            self._counts = next((way for way in ways if way("a") is not None), _estimate)
        found = self._counts(text)
        return _estimate(text) if found is None else found

    def _by_prompt(self, text: str) -> int | None:
        """vLLM, SGLang."""
        body = {"model": self._settings.model, "prompt": text, "add_special_tokens": False}
        found = _get(self.client.fetch(f"{self.client.root}/tokenize", body), "count")
        return found if isinstance(found, int) else None

    def _by_content(self, text: str) -> int | None:
        """llama.cpp."""
        found = _get(self.client.fetch(f"{self.client.root}/tokenize", {"content": text}), "tokens")
        return len(found) if isinstance(found, list) else None

    def _by_inputs(self, text: str) -> int | None:
        """TGI."""
        found = self.client.fetch(f"{self.client.root}/tokenize", {"inputs": text, "add_special_tokens": False})
        return len(found) if isinstance(found, list) else None

    def answer(
        self, prefix: str, suffixes: Sequence[str], *, stop: Sequence[str], max_new_tokens: int
    ) -> Iterator[tuple[int, Answer]]:
        """Yield ``(index, answer)`` as answers arrive. See ``teacher.Teacher``.

        Raises TeacherUnreachable where the server cannot be reached or gives up, BrdError for a key, a model or
        settings that it does not accept; what has arrived is yielded before.
        """
        try:
            if suffixes:
                yield from self._answers(prefix, suffixes, stop, max_new_tokens)
        except Refused as refusal:
            raise self.explained(refusal) from None

    def _answers(
        self, prefix: str, suffixes: Sequence[str], stop: Sequence[str], max_new_tokens: int
    ) -> Iterator[tuple[int, Answer]]:
        asking = self.asking(prefix, stop, max_new_tokens)
        refusals: list[str] = []

        async def ask(suffix: str, first: bool = False) -> tuple[Answer, int]:
            def parse(reply: Any) -> Answer:
                return asking.read(reply, suffix)

            return await self.client.ask(asking.path, asking.body(suffix), parse, first=first)

        async def one(asked: tuple[int, str]) -> tuple[int, Answer]:
            index, suffix = asked
            try:
                answer, retries = await ask(suffix)
            except Refused as refusal:
                if refusal.status not in OF_A_PROMPT:
                    raise
                try:
                    await ask(_PLAIN, first=True)
                except Refused:
                    raise refusal from None
                refusals.append(refusal.message)
                return index, Answer("", 0, 0, False)
            return index, replace(answer, retries=retries)

        try:
            yield from self.client.each(enumerate(suffixes), one)
        finally:
            if refusals:
                print(
                    f"{self.client.base} refused {len(refusals)} sentences, which count as malformed ({refusals[0]})",
                    file=sys.stderr,
                    flush=True,
                )

    def asking(self, prefix: str, stop: Sequence[str], max_new_tokens: int) -> Asking:
        """How suffixes are asked. In a conversation the server is asked once whether its template has a system
        message; raises as ``answer`` does, and Refused."""
        settings = {"max_tokens": max_new_tokens, "temperature": 0, "stop": list(stop), **self._server.extra}
        shared = {"model": self._settings.model, **{k: v for k, v in settings.items() if v is not None}}
        form = self._turns(prefix, shared) if self._settings.chat_template else _raw(prefix, shared)
        return Asking(form.path, form.body, lambda reply, suffix: _answer(reply, form, suffix, stop))

    def _turns(self, prefix: str, shared: dict[str, Any]) -> _Form:
        """The conversation, with the task as the system's message where the model's template has one."""

        def form(system: bool) -> _Form:
            messages = chat.conversation(prefix, system=system)
            return _Form(
                "/chat/completions",
                lambda suffix: {**shared, "messages": messages(suffix.partition("\n")[0])},
                lambda choice, suffix: _after_cue(_get(choice, "message", "content"), suffix.partition("\n")[2]),
            )

        async def has_system(_: None) -> bool:
            try:
                await self.client.ask(form(True).path, form(True).body(_PLAIN), _choice)
            except Refused as refusal:
                if refusal.status not in OF_A_PROMPT:
                    raise
                try:
                    await self.client.ask(form(False).path, form(False).body(_PLAIN), _choice)
                except Refused:
                    raise refusal from None
                return False
            return True

        if self._system is None:
            (self._system,) = self.client.each([None], has_system)
        return form(self._system)

    def explained(self, refusal: Refused) -> BrdError:
        """A refusal as the error that says what would be right."""
        status, said = refusal.status, f"{self.client.base}: {refusal}"
        if status in (402, 429):
            return TeacherUnreachable(f"{said}; what was answered is kept, and the same command asks for the rest")
        if status in (401, 403):
            name = self._server.key_variable
            which = f"the key in the environment variable {name} is not accepted"
            return BrdError(
                f"{said}; {which}" if name else f"{said}; teacher.server.key_variable should name the key's variable"
            )
        if status == 404:
            return BrdError(f"{said}; {self._not_found()}")
        if 300 <= status < 400:
            return BrdError(f"{said}; teacher.server.base_url should name that address")
        if status in OF_A_PROMPT:
            return BrdError(f"{said}; it refuses any sentence with this prompt and these settings")
        return BrdError(said)

    def _not_found(self) -> str:
        models = _get(self.client.fetch(f"{self.client.base}/models"), "data")
        names = [self.client.line(_get(m, "id")) for m in models] if isinstance(models, list) else []
        name = self._settings.model
        if not names:
            return "teacher.server.base_url should be the part before /completions, mostly ending in /v1"
        if name not in names:
            return f"teacher.model {name!r} is none of its models; {nearest(name, sorted(names)[:20])}"
        return "it has the model, but not in this way: set teacher.chat_template to " + (
            "false" if self._settings.chat_template else "true"
        )

    def close(self) -> None:
        """Close the connections; the server belongs to whoever started it."""
        self.client.close()


def _raw(prefix: str, shared: dict[str, Any]) -> _Form:
    return _Form(
        "/completions",
        lambda suffix: {**shared, "prompt": prefix + suffix},
        lambda choice, suffix: _text(_get(choice, "text")),
    )


def _choice(reply: Any) -> dict[str, Any]:
    """The one choice of a completion. Raises ValueError where there is none, which may be an error with status 200."""
    choices = _get(reply, "choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError(_get(reply, "error", "message") or "no 'choices' in it")
    return choices[0]


def _answer(reply: Any, form: _Form, suffix: str, stop: Sequence[str]) -> Answer:
    """The answer in a completion. Raises ValueError for a reply that is none."""
    choice = _choice(reply)
    text, reason = form.text(choice, suffix), choice.get("finish_reason")
    if reason in ("abort", "error"):
        raise ValueError(f"finish_reason {reason!r}")
    # A server that was told not to stop (extra: {stop: null}) goes on; others may keep the stop string.
    ends = [place for place in (text.find(s) for s in stop) if place >= 0]
    usage = _get(reply, "usage")
    return Answer(
        text=text[: min(ends)] if ends else text,
        prompt_tokens=_count(_get(usage, "prompt_tokens")),
        new_tokens=_count(_get(usage, "completion_tokens")),
        finished=bool(ends) or reason in _ENDED,
        cached_tokens=_count(_get(usage, "prompt_tokens_details", "cached_tokens")),
    )


def _after_cue(content: Any, cue: str) -> str:
    """What a message says after the cue, which it repeats or not."""
    text = _text("" if content is None else content).lstrip()
    return text.removeprefix(cue) if cue else text


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("no text in its choice")
    # Halves of surrogate pairs can stand in JSON and in no file.
    return value.encode("utf-8", "replace").decode("utf-8")


def _count(value: Any) -> int:
    """A count of tokens; 0 for whatever is none."""
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else 0


def _get(value: Any, *keys: str) -> Any:
    """What stands under nested keys of a JSON value, or None."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _estimate(text: str) -> int:
    return -(-len(text.encode("utf-8", "replace")) // BYTES_A_TOKEN)


def identity(settings: TeacherSettings) -> dict[str, str]:
    """All that is known to change an answer. Not the server's address: a model that moves stays the same teacher."""
    server = settings.server
    return {
        "model": settings.model,
        "engine": "openai",
        "revision": server.revision or "",
        "extra": json.dumps(server.extra, sort_keys=True),
        "chat_template": "turns" if settings.chat_template else "false",
        "decoding": "greedy",
    }


def key(settings: TeacherSettings) -> str | None:
    """The key that the environment holds for the server, where the recipe names its variable.

    Raises BrdError where it is missing or cannot be sent.
    """
    name = settings.server.key_variable
    if name is None:
        return None
    found = os.environ.get(name, "").strip()
    if not found:
        raise BrdError(f"teacher.server.key_variable: the environment variable {name} is not set")
    if not (found.isascii() and found.isprintable()):
        raise BrdError(f"teacher.server.key_variable: what the environment variable {name} holds is no key")
    return found


def load(settings: TeacherSettings) -> OpenAI:
    """The server that a recipe names. Nothing is asked of it yet."""
    return OpenAI(settings, key(settings))
