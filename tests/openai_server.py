"""A real HTTP server that speaks as OpenAI-compatible ones do, in a thread, and misbehaves as a test tells it to."""

import asyncio
import contextlib
import json
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MODEL = "reader-7b"


@dataclass
class Asked:
    """A request: ``sentence`` is what its prompt ends in, ``times`` how often that was asked before, this included.
    ``body`` is empty where ``raw`` is no JSON."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    sentence: str
    times: int
    method: str = ""
    raw: bytes = b""


@dataclass
class Reply:
    """``body`` is JSON unless it is bytes. ``cut``: so many bytes of it, then the connection is reset. ``drip``: so
    many seconds before each tenth of it. ``hang``: nothing, until the server stops or ``Server.release``."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    drip: float = 0.0
    hang: bool = False


def completion(asked: Asked, text: str = " none", reason: Any = "stop", **more: Any) -> Reply:
    """An answer as the endpoint gives it; 100 tokens of prompt, 80 of them cached, 3 new ones."""
    said = {"message": {"role": "assistant", "content": text}} if "chat" in asked.path else {"text": text}
    usage = {"prompt_tokens": 100, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 80}}
    return Reply({"choices": [{"index": 0, "finish_reason": reason, **said}], "usage": usage, **more})


def error(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    shown = {k.replace("_", "-"): v for k, v in headers.items()}
    return Reply({"error": {"message": message, "type": "some_error", "code": code}}, status, shown)


def default(asked: Asked) -> Reply:
    if asked.path == "/v1/models":
        return Reply({"data": [{"id": MODEL}]})
    if asked.path not in ("/v1/completions", "/v1/chat/completions"):
        return error(404, "Not Found")
    return completion(asked, f" about {asked.sentence}")


class Server:
    """Answers by ``plan``; ``asked`` holds every request that came in whole, ``most_at_once`` how many at a time."""

    def __init__(
        self, plan: Callable[[Asked], Reply] = default, tls: ssl.SSLContext | None = None, port: int = 0
    ) -> None:
        self.plan, self._tls = plan, tls
        self.asked: list[Asked] = []
        self.times: Counter[str] = Counter()
        self.most_at_once = self._at_once = 0
        self.port = port
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[Any] | None] = set()
        self._released = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.start()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        async def end() -> None:
            self.go_down()
            for task in (serving := [t for t in self._serving if t]):
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self) -> None:
        """Listen, on the same port as before."""

        async def listen() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls, backlog=512)
            self.port = self._server.sockets[0].getsockname()[1]

        asyncio.run_coroutine_threadsafe(listen(), self._loop).result()

    def stop(self) -> None:
        """Refuse connections and reset those that there are."""

        async def end() -> None:
            self.go_down()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()

    def go_down(self) -> None:
        """``stop`` from within a plan."""
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    def come_back(self) -> None:
        """``start`` from within a plan, in a moment."""
        self._loop.call_later(0.05, lambda: self._loop.create_task(self._restart()))

    async def _restart(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls, backlog=512)

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._released.set)

    def questions(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.path.endswith("/completions")]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._server.is_serving():
            # Accepted in the moment when the server went down.
            writer.transport.abort()
            return
        self._writers.add(writer)
        self._serving.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *rest = head.decode().split("\r\n")
                headers = {k.lower(): v for k, _, v in (r.partition(": ") for r in rest if r)}
                body = await _body(reader, headers)
                self._at_once += 1
                self.most_at_once = max(self.most_at_once, self._at_once)
                try:
                    await self._answer(self._record(line.split(), headers, body), writer)
                finally:
                    self._at_once -= 1
        self._writers.discard(writer)
        self._serving.discard(asyncio.current_task())
        writer.close()

    def _record(self, line: list[str], headers: dict[str, str], body: bytes) -> Asked:
        method, path, *_ = line
        tree = json.loads(body) if headers.get("content-type") == "application/json" else {}
        prompt = tree.get("prompt") or (tree.get("messages") or [{}])[-1].get("content", "")
        # The given line of the last block, as behaviors write it.
        sentence = prompt.rpartition("\n\n")[2].split("\n")[0].removeprefix("Sentence: ")
        self.times[sentence] += 1
        self.asked.append(Asked(path, headers, tree, sentence, self.times[sentence], method, body))
        return self.asked[-1]

    async def _answer(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        reply = self.plan(asked)
        if reply.hang:
            await self._released.wait()
            reply = default(asked)
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **reply.headers}
        head = f"HTTP/1.1 {reply.status} X\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items()) + "\r\n"
        writer.write(head.encode())
        part = len(body) // 10 + 1
        for place in range(0, len(body), part) if reply.drip else ():
            await asyncio.sleep(reply.drip)
            if writer.is_closing():
                raise ConnectionError
            writer.write(body[place : place + part])
        if not reply.drip:
            writer.write(body[: reply.cut])
        await writer.drain()
        if reply.cut is not None:
            writer.transport.abort()
            raise ConnectionError


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return body
