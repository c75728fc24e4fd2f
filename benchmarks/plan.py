"""What `brd plan` predicts against what the run then takes.

    python benchmarks/plan.py [--rounds 1] [--only process,llamacpp,server,training]
    python benchmarks/plan.py --huge [--huge-sentences 5000000]

Reading by the demo's recipe with three kinds of teachers: its own in this process, the same model in llama.cpp (on
fewer sentences), and a stub of a server in a process of its own that works on so many requests at once, each taking as
long as its answer is. And training: the demo's arms on the lessons of a few sentences. Planning and running are
commands of their own, in a fresh run folder; what planning asked is not asked again, and the prediction is of the
rest. --huge: how long `brd plan --no-training` takes on a corpus of that many sentences, which is written into a
temporary folder first.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

# Actual time over predicted: within 15 % either way.
TARGET = 1.15
TARGET_HUGE_SECONDS = 120
# The stub: requests that it works on at once, seconds of each and of each token.
AT_ONCE = 24
BASE = 0.3
A_TOKEN = 0.02
# How the demo's recipe is made short enough.
CHANGES = {
    "process": [],
    "llamacpp": ["teacher.kind=llamacpp", "teacher.batch_size=8", "reading.sentences=130"],
    "training": ["reading.sentences=90", "reading.held_out_sentences=10"],
}


class Stub(asyncio.Protocol):
    """Answers in the time that as many words as the sentence has take; more than ``AT_ONCE`` wait."""

    workers: asyncio.Semaphore
    tasks: ClassVar[set[asyncio.Task[None]]] = set()

    def connection_made(self, transport: Any) -> None:
        self._transport, self._held = transport, b""

    def data_received(self, data: bytes) -> None:
        self._held += data
        while b"\r\n\r\n" in self._held:
            head, _, rest = self._held.partition(b"\r\n\r\n")
            length = int((head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]) or 0)
            if len(rest) < length:
                return
            body, self._held = rest[:length], rest[length:]
            task = asyncio.get_running_loop().create_task(self._answer(json.loads(body) if body else {}))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _answer(self, asked: dict[str, Any]) -> None:
        prompt = str(asked.get("prompt", ""))
        words = len(prompt.rpartition("\n\n")[2].split())
        async with self.workers:
            await asyncio.sleep(BASE + A_TOKEN * words)
        usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": words}
        told = {"choices": [{"index": 0, "text": " none", "finish_reason": "stop"}], "usage": usage}
        body = json.dumps(told).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


def serve(told: Connection, at_once: int) -> None:
    async def run() -> None:
        Stub.workers = asyncio.Semaphore(at_once)
        server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", 0, backlog=1024)
        told.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def stub() -> Iterator[list[str]]:
    """The keys of a recipe that asks the stub."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, AT_ONCE), daemon=True)
    server.start()
    try:
        url = f"http://127.0.0.1:{ours.recv()}/v1"
        yield ["teacher.kind=openai", "teacher.model=stub", f"teacher.server.base_url={url}"]
    finally:
        server.terminate()
        server.join()


def brd(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "brd", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def sets(keys: list[str]) -> list[str]:
    return [part for key in keys for part in ("--set", key)]


def step_file(folder: Path, arm: str) -> Path:
    return folder / "steps" / f"train.{arm}.json"


def seconds_of(folder: Path, arm: str) -> float:
    return float(json.loads(step_file(folder, arm).read_text())["seconds"])


def others() -> float:
    """The processor seconds of all processes but this one and those that it has waited for (Linux)."""
    user, nice, system, _, _, irq, soft, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK") - sum(u.ru_utime + u.ru_stime for u in ours)


def compare(name: str, keys: list[str], folder: Path) -> float:
    """Plan, then run: actual over predicted seconds of what this one is about."""
    training = name == "training"
    chosen = ["demo", "--out", str(folder), *sets(keys)]
    times = [(time.perf_counter(), others())]
    found = json.loads(brd("plan", *chosen, "--json", *([] if training else ["--no-training"])))
    times.append((time.perf_counter(), others()))
    brd("run", *chosen, "--until", "train" if training else "read")
    times.append((time.perf_counter(), others()))
    for what, (a, before), (b, after) in zip(("planned", "run"), times[:-1], times[1:], strict=True):
        print(f"{name}: {what} in {b - a:.0f} s, beside {(after - before) / (b - a):.2f} cores of others", flush=True)
    if training:
        arms = found["training"]["arms"]
        told, actual = found["training"]["seconds"], sum(seconds_of(folder, arm) for arm in arms)
        steps = {arm: json.loads(step_file(folder, arm).read_text())["result"]["steps"] for arm in arms}
        print(f"  steps { ({arm: row['steps'] for arm, row in arms.items()}) }, really {steps}", flush=True)
    else:
        reading = found["reading"]
        told, actual = reading["seconds"], float(json.loads((folder / "steps/read.json").read_text())["seconds"])
        left = {behavior: row["to_ask"] for behavior, row in reading["behaviors"].items()}
        print(f"  {reading['asked_now']} answers asked by the plan, {left} by the run", flush=True)
    ratio = float(actual / told["expected"])
    between = f"[{told['low']:.1f}, {told['high']:.1f}]"
    print(f"  predicted {told['expected']:.1f} s {between}, took {actual:.1f} s: {ratio:.2f}", flush=True)
    return ratio


_WORDS = "the of and in was by with river harbour letter bridge night train song paper winter market Lina Oslo".split()


def write_corpus(path: Path, sentences: int) -> None:
    """Sentences of 6 to 26 words, four to a paragraph, ten paragraphs to a document."""
    drawn = random.Random(0)
    stock = [
        " ".join([drawn.choice(_WORDS).capitalize(), *drawn.choices(_WORDS, k=drawn.randint(5, 25))]) + "."
        for _ in range(20_000)
    ]
    with path.open("w", encoding="utf-8") as file:
        for number in range(sentences // 4):
            file.write(f"Number {number} " + " ".join(drawn.choices(stock, k=4)) + "\n")
            if number % 10 == 9:
                file.write("\n")


def huge(sentences: int) -> None:
    with tempfile.TemporaryDirectory() as scratch, stub() as keys:
        corpus = Path(scratch) / "corpus.txt"
        write_corpus(corpus, sentences)
        text = [f"text.source={corpus}", "text.layout=line", "text.order=corpus"]
        wanted = ["reading.sentences=1000000000", "reading.held_out_sentences=1000000000"]
        start = time.perf_counter()
        out = str(Path(scratch) / "run")
        told = brd("plan", "demo", "--out", out, "--no-training", "--json", *sets([*keys, *text, *wanted]))
        took = time.perf_counter() - start
        found = json.loads(told)
        counted = sum(found["text"]["sentences"].values())
        print(f"{corpus.stat().st_size / 1e6:.0f} MB, {found['text']['how']}: {counted} sentences")
        ratio = took / TARGET_HUGE_SECONDS
        what = (
            f"seconds of `brd plan --no-training` on {sentences} sentences ({took:.0f}) over {TARGET_HUGE_SECONDS}; "
            f"it tells {counted / sentences:.3f} of them"
        )
        print(json.dumps(result("plan_huge", [ratio], 1.0, what)))


def result(name: str, ratios: list[float], target: float, what: str) -> dict[str, Any]:
    return {
        "name": name,
        "ratio": round(statistics.median(ratios), 3),
        "low": round(min(ratios), 3),
        "high": round(max(ratios), 3),
        "target": target,
        "what": what,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="process,llamacpp,server,training")
    parser.add_argument("--keep", type=Path, help="keep the run folders in this one")
    parser.add_argument("--huge", action="store_true")
    parser.add_argument("--huge-sentences", type=int, default=5_000_000)
    options = parser.parse_args()
    if options.huge:
        huge(options.huge_sentences)
        return
    with stub() as server, tempfile.TemporaryDirectory() as scratch:
        keys = {**CHANGES, "server": server}
        ratios = [
            compare(name, keys[name], (options.keep or Path(scratch)) / f"{name}-{number}")
            for number in range(options.rounds)
            for name in options.only.split(",")
        ]
    what = f"actual over predicted seconds after `brd plan`: {options.only}; within 0.85 to {TARGET}"
    print(json.dumps(result("plan", ratios, TARGET, what)))


if __name__ == "__main__":
    main()
