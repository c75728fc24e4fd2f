"""Requests a second of the teacher on a server, one prompt a request, against the same requests by httpx2.

    taskset -c 0 python benchmarks/client.py [--rounds 5] [--requests 3000] [--concurrency 64]

The server is a stub in a process of its own that answers at once, so what is measured is what asking costs: on one
core (where the system can pin a process), the teacher with its gate, retries, parsing and thread, and httpx2 with as
many workers and nothing but JSON around it. Printed beside it: aiohttp as bare as httpx2. The order alternates.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

import aiohttp
import httpx2

from brd.reading.behavior import load_behaviors
from brd.sections.teacher import Teacher as Settings
from brd.teachers.openai import OpenAI

TARGET_A_SECOND = 1000
ANSWER = json.dumps(
    {
        "choices": [{"index": 0, "text": " Lina Moreau (person: who opened the shop)", "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 400, "completion_tokens": 12, "prompt_tokens_details": {"cached_tokens": 380}},
    }
).encode()
REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)


class Stub(asyncio.Protocol):
    """Answers every request the same, as soon as all of it is there."""

    def connection_made(self, transport: Any) -> None:
        self._transport, self._held = transport, b""

    def data_received(self, data: bytes) -> None:
        self._held += data
        while b"\r\n\r\n" in self._held:
            head, _, rest = self._held.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            if len(rest) < length:
                return
            self._held = rest[length:]
            self._transport.write(REPLY)


def serve(told: Connection, core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", 0, backlog=1024)
        told.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def spread(
    bodies: list[dict[str, Any]], workers: int, ask: Callable[[dict[str, Any]], Awaitable[Any]]
) -> Awaitable[Any]:
    waiting = iter(bodies)

    async def work() -> None:
        for body in waiting:
            reply = await ask(body)
            assert reply["choices"][0]["text"]

    return asyncio.gather(*(work() for _ in range(workers)))


async def by_httpx(url: str, bodies: list[dict[str, Any]], workers: int) -> None:
    limits = httpx2.Limits(max_connections=workers, max_keepalive_connections=workers)
    async with httpx2.AsyncClient(limits=limits, timeout=60, trust_env=False) as client:

        async def ask(body: dict[str, Any]) -> Any:
            return (await client.post(f"{url}/completions", json=body)).json()

        await spread(bodies, workers, ask)


async def by_aiohttp(url: str, bodies: list[dict[str, Any]], workers: int) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

        async def ask(body: dict[str, Any]) -> Any:
            async with client.post(f"{url}/completions", json=body) as response:
                return await response.json()

        await spread(bodies, workers, ask)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--concurrency", type=int, default=64)
    options = parser.parse_args()

    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    elsewhere = sorted(set(range(os.cpu_count() or 1)) - set(cores[:1]))
    if cores:
        os.sched_setaffinity(0, {cores[0]})
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    server = context.Process(target=serve, args=(theirs, elsewhere[0] if cores and elsewhere else None), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{ours.recv()}/v1"

    behavior = load_behaviors(["ner"])["ner"]
    suffixes = [behavior.suffix(f"Lina Moreau opened shop number {n} in Trieste.") for n in range(options.requests)]
    shared = {"model": "m", "max_tokens": 72, "temperature": 0, "stop": list(behavior.stop)}
    bodies = [{**shared, "prompt": behavior.prefix + suffix} for suffix in suffixes]
    keys = {"base_url": url, "concurrency": options.concurrency}
    teacher = OpenAI(Settings(kind="openai", model="m", server=keys), None)  # type: ignore[arg-type]

    def by_teacher() -> None:
        answers = teacher.answer(behavior.prefix, suffixes, stop=behavior.stop, max_new_tokens=72)
        assert sum(answer.new_tokens for _, answer in answers) == 12 * len(suffixes)

    ways: dict[str, Callable[[], None]] = {
        "teacher": by_teacher,
        "httpx2": lambda: asyncio.run(by_httpx(url, bodies, options.concurrency)),
        "aiohttp": lambda: asyncio.run(by_aiohttp(url, bodies, options.concurrency)),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds):
        for name in ways if number % 2 == 0 else reversed(ways):
            start = time.perf_counter()
            ways[name]()
            rates[name].append(len(suffixes) / (time.perf_counter() - start))
        print(f"round {number + 1}: " + ", ".join(f"{n} {r[-1]:.0f} requests/s" for n, r in rates.items()), flush=True)
    teacher.close()
    server.terminate()
    ratios = [a / b for a, b in zip(rates["teacher"], rates["httpx2"], strict=True)]
    rate = statistics.median(rates["teacher"])
    print(f"{rate:.0f} requests/s, {'above' if rate >= TARGET_A_SECOND else 'BELOW'} {TARGET_A_SECOND}")
    print(
        json.dumps(
            {
                "name": "client",
                "ratio": round(statistics.median(ratios), 3),
                "low": round(min(ratios), 3),
                "high": round(max(ratios), 3),
                "target": 1.5,
                "what": f"requests/s on one core, the openai teacher ({rate:.0f}, should be {TARGET_A_SECOND}) over "
                f"httpx2 ({statistics.median(rates['httpx2']):.0f}), {options.concurrency} at once, stub server",
            }
        )
    )


if __name__ == "__main__":
    main()
