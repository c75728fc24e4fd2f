"""A server that is killed (signal 9) at drawn ones of all the calls that it makes, and started again on its port.

    python killed_servers.py FOLDER PORT SEED KILLS

FOLDER/asked has a line for each request that came in, FOLDER/killed one for each kill. The last server stays until this
process group is ended.
"""

import os
import random
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from openai_server import Asked, Reply, Server, completion

# What some requests take.
MOST_CALLS = 600


def serve(log: Path, port: int, spared: int, at: int | None) -> None:
    """Answers until call number ``at`` of the thread that answers, counted from request number ``spared`` on."""
    asked, calls, came = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 0, 0

    def plan(question: Asked) -> Reply:
        nonlocal came
        came += 1
        os.write(asked, f"{question.sentence}\n".encode())
        return completion(question, " Oslo (location)")

    def count(*_: Any) -> None:
        nonlocal calls
        calls += came >= spared
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(count)
    Server(plan, port=port)
    threading.Event().wait()


def main(folder: Path, port: int, seed: int, kills: int) -> None:
    draw = random.Random(seed)
    for number in range(kills + 1):
        if not (process := os.fork()):
            # Who is not there at the very first request is not waited for.
            serve(folder / "asked", port, 1 if number else 2, draw.randint(1, MOST_CALLS) if number < kills else None)
        os.waitpid(process, 0)
        with (folder / "killed").open("a") as file:
            file.write("killed\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
