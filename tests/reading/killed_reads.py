"""Reads a small corpus in child processes and kills each (signal 9) at a drawn one of all the calls that it makes.

    python killed_reads.py FOLDER SEED KILLS [SERVER]

Each run folder is read again until it comes to its end. Prints, as JSON, how often each was killed. With the address of
a server the sentences are asked there, two at once; the address of a run ends in its name (SERVER/run-0/v1).
"""

import json
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.dataset  # noqa: F401  (imported here once, rather than in each child)
from scripted import Scripted, a_recipe

from brd.reading.behavior import load_behaviors
from brd.reading.reader import read
from brd.reading.verifier import verifier_print
from brd.recipe import Recipe
from brd.sections.teacher import Teacher as Settings
from brd.teachers import client
from brd.teachers.openai import OpenAI
from brd.teachers.teacher import Answer

# Some come twice.
SENTENCES = [f"Mira{n % 15} Okafor sailed to Oslo on day {n % 15}." for n in range(18)]


def write(behavior: str, sentence: str) -> str:
    if behavior == "qra":
        return f" Who sailed to Oslo?\nAnswer: {sentence.split()[0]} Okafor"
    return " Oslo (location: where she sailed to)" if "3" in sentence else " Bergen (location)"


class Told(Scripted):
    """Notes every answer in a file before it gives it."""

    def __init__(self, log: Path) -> None:
        super().__init__(write)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def answer(
        self, prefix: str, suffixes: Sequence[str], *, stop: Sequence[str], max_new_tokens: int
    ) -> Iterator[tuple[int, Answer]]:
        for index, answer in super().answer(prefix, suffixes, stop=stop, max_new_tokens=max_new_tokens):
            os.write(self._log, suffixes[index].replace("\n", "|").encode() + b"\n")
            yield index, answer


def recipe_of(folder: Path) -> Recipe:
    return a_recipe(folder, SENTENCES, shard_rows=7)


def teacher(run: Path, server: str) -> Told | OpenAI:
    if not server:
        return Told(run / "asked")
    client.AHEAD = 2
    address = {"base_url": f"{server}/{run.name}/v1", "concurrency": 2}
    return OpenAI(Settings.model_validate({"kind": "openai", "model": "reader-7b", "server": address}), None)


def child(recipe: Recipe, run: Path, at: int | None, server: str = "") -> tuple[bool, int]:
    """Reads in a child that dies at its call number ``at``; whether it did, and else how many calls there were."""
    out, into = os.pipe()
    run.mkdir(parents=True, exist_ok=True)
    if not (process := os.fork()):
        calls = 0

        def count(*_: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                os.kill(os.getpid(), signal.SIGKILL)

        # Also those of the thread that asks a server.
        threading.setprofile(count)
        sys.setprofile(count)
        read(recipe, run / "readings", teacher(run, server))
        sys.setprofile(None)
        os.write(into, str(calls).encode())
        os._exit(0)
    os.close(into)
    with os.fdopen(out) as told:
        calls = int(told.read() or 0)
    status = os.waitpid(process, 0)[1]
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, status
    return status != 0, calls


def main(folder: Path, seed: int, kills: int, server: str = "") -> None:
    recipe = recipe_of(folder)
    for behavior in load_behaviors(recipe.reading.behaviors).values():
        verifier_print(behavior)
    _, calls = child(recipe, folder / "undisturbed", None, server)
    draw, killed = random.Random(seed), [0]
    while sum(killed) < kills:
        if child(recipe, folder / f"run-{len(killed) - 1}", draw.randint(1, calls), server)[0]:
            killed[-1] += 1
        else:
            killed.append(0)
    assert child(recipe, folder / f"run-{len(killed) - 1}", None, server)[0] is False
    print(json.dumps(killed))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
