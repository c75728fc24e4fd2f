"""Many requests to one server, as many at once as it bears, repeated where that can help, in a thread of their own.

By aiohttp: it parses HTTP in C and takes a connection from its pool at once, where httpx parses in Python and its pool
looks through all connections at the beginning and at the end of every request.
"""

import asyncio
import contextlib
import json
import os
import random
import re
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, TypeVar

import aiohttp

from brd.errors import TeacherUnreachable
from brd.sections.teacher import Server
from brd.teachers import connection
from brd.teachers.gate import Gate
from brd.teachers.reply import error_of, retry_after

# Seconds. The first repetition comes after FIRST_WAIT, each further one after twice as long, by chance up to half less.
FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
# A server that asks for more than this many seconds of patience (Retry-After) is given up.
LONGEST_PAUSE = 600.0
CONNECT = 10.0
# What is under way when all has to stop is waited for so long: it may be paid for.
LAST_ANSWERS = 30.0
# Servers close an idle connection after 5 s (uvicorn); one that is closed while it is written to costs a repetition.
KEEP_ALIVE = 4.0
# Answers that may wait for the one who asked before no further question is sent, and how often that is looked at.
AHEAD = 256
LOOK = 0.01
# Failed requests that the server may have computed (and charged) are borne up to this share of the answers, and twice
# as many as an outage costs: all repetitions of all that can be under way.
REPEATED = 0.1
LONGEST_REPLY = 16 * 2**20
_OVERLOADED = (429, 503, 529)
# Statuses below 500 that may pass: request timeout, too early, too many requests.
_PASSING = (408, 425, 429)
# Of a 429: what waiting does not help against.
_SPENT = re.compile(r"quota|billing|credit|spend")

Item = TypeVar("Item")
Result = TypeVar("Result")
Exchanged = tuple[int, Mapping[str, str], bytes]


class Refused(Exception):
    """An answer of the server that no repetition heals; ``message`` is its own, in one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


class GaveUp(Exception):
    """A request failed as often as it may; ``began`` is when it was first made."""

    def __init__(self, reason: str, began: float) -> None:
        super().__init__(reason)
        self.reason, self.began = reason, began


class _Passing(Exception):
    """A failure that may heal. ``wait``: seconds that the server asks for; ``costs``: it may have computed."""

    def __init__(self, reason: str, *, wait: float = 0.0, costs: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.costs = reason, wait, costs


class Client:
    """One server. ``base`` is its URL up to /v1, ``root`` without that. The key shows in no error.

    Raises BrdError for a CA bundle or a key that cannot be used. ``close`` it at the end.
    """

    def __init__(self, settings: Server, key: str | None) -> None:
        self.base = settings.base_url or ""
        self.root = self.base.removesuffix("/v1")
        self._key, self._settings = key, settings
        self._gate = Gate(settings.concurrency)
        self._met = self._stopping = False
        self._answered, self._repeated, self._last_answer = 0, 0, -1.0
        self._under_way: set[asyncio.Task[Any] | None] = set()
        self._proxy = connection.proxy(self.base)
        trust = connection.trust(settings)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="teacher", daemon=True)
        self._thread.start()
        self._session = self._wait_for(self._open(trust))

    async def _open(self, trust: ssl.SSLContext | bool) -> aiohttp.ClientSession:
        headers = {"User-Agent": "brd"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=trust, keepalive_timeout=KEEP_ALIVE),
            timeout=aiohttp.ClientTimeout(total=self._settings.timeout, sock_connect=CONNECT),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    def fetch(self, url: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON of one request that is made once (a GET without ``body``); None where the server gives none."""
        data = None if body is None else json.dumps(body).encode()
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError, ValueError, RecursionError):
            status, _, text = self._wait_for(self._exchange(url, data))
            return json.loads(text) if status == 200 else None
        return None

    def each(self, items: Iterable[Item], work: Callable[[Item], Awaitable[Result]]) -> Iterator[Result]:
        """Yield the results of ``work`` (which uses ``ask``) on all items, as they come; one call at a time.

        Items are taken as they are needed. Whatever stops the work, answers that have arrived are yielded before it is
        raised: BrdError, Refused, and TeacherUnreachable where the server gives no answers any more. A request that
        fails again and again while others are answered is put aside and told of at the end.
        """
        self._stopping = False
        arrived: SimpleQueue[Any] = SimpleQueue()
        tasks: list[asyncio.Task[None]] = []

        def start() -> None:
            tasks.append(self._loop.create_task(self._spread(iter(items), work, arrived)))
            # The task itself in the queue is the end of it.
            tasks[0].add_done_callback(arrived.put)

        self._loop.call_soon_threadsafe(start)
        found: Any = None
        try:
            while not isinstance(found := arrived.get(), asyncio.Task):
                yield found
            found.result()
        finally:
            if not isinstance(found, asyncio.Task):
                self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())
                while not isinstance(arrived.get(), asyncio.Task):
                    pass

    async def _spread(
        self, items: Iterator[Item], work: Callable[[Item], Awaitable[Result]], arrived: "SimpleQueue[Any]"
    ) -> None:
        aside: list[GaveUp] = []
        workers = {
            asyncio.create_task(self._worker(items, work, arrived, aside)) for _ in range(self._settings.concurrency)
        }
        try:
            done, running = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
            if running:
                for worker in running - self._under_way:
                    worker.cancel()
                await asyncio.wait(running, timeout=LAST_ANSWERS)
            for worker in done:
                worker.result()
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        if aside:
            raise TeacherUnreachable(
                f"{self.base}: {len(aside)} requests failed {self._settings.retries + 1} times each while others were "
                f"answered ({aside[0].reason}); what was answered is kept, and the same command asks for the rest"
            )

    async def _worker(
        self,
        items: Iterator[Item],
        work: Callable[[Item], Awaitable[Result]],
        arrived: "SimpleQueue[Any]",
        aside: list[GaveUp],
    ) -> None:
        try:
            for item in items:
                try:
                    arrived.put(await work(item))
                except GaveUp as failure:
                    if not self._stopping:
                        self._put_aside(failure, aside)
                while arrived.qsize() >= AHEAD:
                    await asyncio.sleep(LOOK)
                if self._stopping:
                    return
        except Exception:
            # At once, before the gate lets the next one through.
            self._stopping = True
            raise

    def _put_aside(self, failure: GaveUp, aside: list[GaveUp]) -> None:
        if self._last_answer < failure.began:
            raise TeacherUnreachable(
                f"{self.base}: no answer in {self._settings.retries + 1} tries ({failure.reason}); what was answered "
                "is kept: run the same command again when the server works"
            )
        aside.append(failure)

    async def ask(
        self, path: str, body: dict[str, Any], parse: Callable[[Any], Result], *, first: bool = False
    ) -> tuple[Result, int]:
        """What ``parse`` makes of the reply to a POST, and how often it had to be repeated.

        ``parse`` raises ValueError for a reply that is none; ``first`` goes before all that is not yet under way, as
        repetitions do. Raises Refused, GaveUp and TeacherUnreachable.
        """
        data = json.dumps(body).encode()
        return await self._persist(lambda: self._exchange(self.base + path, data), _json(parse), first)

    async def ask_once(self, path: str, body: dict[str, Any], parse: Callable[[Any], Result]) -> Result:
        """The same for what must not be done twice: GaveUp where the server may have done it."""
        data = json.dumps(body).encode()
        found, _ = await self._persist(lambda: self._exchange(self.base + path, data), _json(parse), once=True)
        return found

    async def get(self, path: str, parse: Callable[[Any], Result]) -> Result:
        """What ``parse`` makes of a page, which is asked for again as in ``ask``."""
        found, _ = await self._persist(lambda: self._exchange(self.base + path, None), _json(parse))
        return found

    async def upload(self, path: str, file: Path, fields: dict[str, str], parse: Callable[[Any], Result]) -> Result:
        """Send a file as a form's; however long that takes, as long as it goes on."""

        async def send() -> Exchanged:
            with file.open("rb") as content:
                form = aiohttp.FormData(fields)
                form.add_field("file", content, filename=file.name, content_type="application/jsonl")
                return await self._exchange(self.base + path, form)

        found, _ = await self._persist(send, _json(parse))
        return found

    async def download(self, path: str, file: Path) -> None:
        """Write what stands there into a file, which is whole or not there."""
        scratch = file.with_name(file.name + ".tmp")

        async def fetch() -> Exchanged:
            with scratch.open("wb") as target:
                return await self._exchange(self.base + path, None, target)

        try:
            await self._persist(fetch, lambda text: os.replace(scratch, file))
        finally:
            scratch.unlink(missing_ok=True)

    async def _persist(
        self,
        send: "Callable[[], Awaitable[Exchanged]]",
        parse: Callable[[bytes], Result],
        first: bool = False,
        *,
        once: bool = False,
    ) -> tuple[Result, int]:
        began, retries = time.monotonic(), 0
        while True:
            try:
                return await self._attempt(send, parse, first or retries > 0), retries
            except _Passing as failure:
                if retries >= self._settings.retries or self._stopping or (once and failure.costs):
                    raise GaveUp(failure.reason, began) from None
                self._count(failure)
                backoff = min(LONGEST_WAIT, FIRST_WAIT * 2.0**retries) * random.uniform(0.5, 1.0)
                retries += 1
                await asyncio.sleep(max(failure.wait, backoff))

    def _count(self, failure: _Passing) -> None:
        self._repeated += failure.costs
        allowed = 2 * self._settings.concurrency * self._settings.retries + REPEATED * self._answered
        if self._repeated > allowed:
            raise TeacherUnreachable(
                f"{self.base}: {self._repeated} failed requests to {self._answered} answers (the last: "
                f"{failure.reason}); stopped before it costs more. What was answered is kept"
            )

    async def _attempt(
        self, send: "Callable[[], Awaitable[Exchanged]]", parse: Callable[[bytes], Result], first: bool
    ) -> Result:
        await self._gate.enter(first)
        began, me = time.monotonic(), asyncio.current_task()
        self._under_way.add(me)
        try:
            if self._stopping:
                raise GaveUp("stopped", began)
            status, headers, text = await send()
            if not 200 <= status < 300:
                raise self._failure(status, headers, text, began)
            found = parse(text)
            self._gate.answered()
            self._answered += 1
            self._last_answer = time.monotonic()
            return found
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            if not self._met:
                raise TeacherUnreachable(self._no_server(error)) from None
            raise _Passing(f"no connection: {self.line(error)}", costs=False) from None
        except TimeoutError:
            self._gate.overloaded(began)
            raise _Passing(f"no answer within teacher.server.timeout, {self._settings.timeout:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _Passing(f"the connection broke: {self.line(error)}") from None
        except (ValueError, RecursionError) as error:
            raise _Passing(f"a reply that is no answer: {self.line(error)}") from None
        finally:
            self._under_way.discard(me)
            self._gate.leave()

    async def _exchange(
        self, url: str, data: bytes | aiohttp.FormData | None, target: IO[bytes] | None = None
    ) -> "Exchanged":
        """Status, headers and text of one request; the text of a good one goes into ``target`` where there is one."""
        options: dict[str, Any] = {"proxy": self._proxy, "allow_redirects": False}
        if isinstance(data, bytes):
            options["headers"] = {"Content-Type": "application/json"}
        if target or isinstance(data, aiohttp.FormData):
            # A file takes its time: it is given up when nothing moves.
            wait = self._settings.timeout
            options["timeout"] = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=wait)
        async with self._session.request("GET" if data is None else "POST", url, data=data, **options) as response:
            self._met = True
            kept = target if response.status == 200 else None
            text = bytearray()
            async for part in response.content.iter_any():
                if kept:
                    kept.write(part)
                    continue
                text += part
                if len(text) > LONGEST_REPLY:
                    raise ValueError(f"longer than {LONGEST_REPLY} bytes")
            return response.status, response.headers, bytes(text)

    def _failure(self, status: int, headers: Mapping[str, str], text: bytes, began: float) -> Exception:
        message, code = error_of(text)
        message = self.line(message)
        if 300 <= status < 400:
            return Refused(status, f"moved to {self.line(headers.get('Location', 'another address'))}")
        if (status < 500 and status not in _PASSING) or (status == 429 and _SPENT.search(code)):
            return Refused(status, message)
        if status in _OVERLOADED:
            self._gate.overloaded(began)
        wait = retry_after(headers)
        if wait is not None:
            if wait > LONGEST_PAUSE:
                return TeacherUnreachable(
                    f"{self.base}: asks to come back in {wait:.0f} s ({status}: {message}); what was answered is kept: "
                    "run the same command again then"
                )
            self._gate.close_for(wait)
        return _Passing(f"{status}: {message}", wait=wait or 0.0, costs=status != 429)

    def _no_server(self, error: Exception) -> str:
        hint = "is the server running? teacher.server.base_url should name it"
        if isinstance(error, aiohttp.ClientSSLError):
            hint = "teacher.server.ca_bundle should name the file of certificates that this server is trusted by"
        return f"{self.base}: cannot be reached ({self.line(error)}); {hint}"

    def line(self, what: object) -> str:
        """An error or the server's words for a message: one line, not long, and without the key."""
        text = str(what) or type(what).__name__
        if self._key:
            text = text.replace(self._key, "***")
        text = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
        return text if len(text) <= 200 else text[:199] + "…"

    def _wait_for(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        """Close all connections and end the thread."""
        if not self._loop.is_closed():
            self._wait_for(self._session.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


def _json(parse: Callable[[Any], Result]) -> Callable[[bytes], Result]:
    return lambda text: parse(json.loads(text))
