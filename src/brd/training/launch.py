"""Several processes for one training: started here, or those that torchrun or SLURM has started.

Those started here get their task through a pipe that stays open: when it closes, the one who started them is gone, and
so are they. Those given by a launcher all run the same command; the first does what one process would do alone, the
others wait for the trainings that it announces.
"""

import logging
import os
import pickle
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from brd.errors import BrdError
from brd.sections.training import Training

Told = dict[str, Callable[..., None]]
"""Keyword arguments of a task that are called in the process that asked for it."""

# Seconds that the others have, once one has failed, to end by themselves.
_GRACE = 10.0
_log = logging.getLogger("brd")
_announced = 0


def run(settings: Training, task: str, arguments: dict[str, Any], told: Told, logs: Path) -> Any:
    """The result of a task (``module:function``), done by as many processes as the recipe and the machine have.

    Each calls the function with ``arguments``, and the main one with ``told`` too. What started processes write is kept
    in ``logs`` (a path that ``.0.log`` is added to) where they fail. Raises BrdError, in one line, for an error of any.
    """
    from brd.training.worker import perform

    if given():
        _announce((task, arguments))
        return perform(task, arguments, told)
    number = wanted(settings)
    if number == 1:
        return perform(task, arguments, told)
    return _Started(number, (task, arguments, tuple(told)), logs).result(told)


def wanted(settings: Training) -> int:
    """How many processes the recipe asks for: with ``auto`` one for each accelerator that rows can be dealt to."""
    import torch

    if settings.parallel == "none":
        return 1
    if settings.processes != "auto":
        return settings.processes
    devices = torch.accelerator.device_count() if torch.accelerator.is_available() else 1
    return next(n for n in range(max(1, devices), 0, -1) if settings.rows_per_step % n == 0)


# Processes of a launcher's.


def given() -> int:
    """How many processes a launcher has started this one with; 0 for none. SLURM's words are put into torch's."""
    names = os.environ
    if "RANK" not in names and int(names.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in names:
        names["RANK"], names["WORLD_SIZE"] = names["SLURM_PROCID"], names["SLURM_STEP_NUM_TASKS"]
        names["LOCAL_RANK"] = names.get("SLURM_LOCALID", "0")
        names.setdefault("MASTER_ADDR", _first_host(names.get("SLURM_STEP_NODELIST", "127.0.0.1")))
        names.setdefault("MASTER_PORT", str(20_000 + int(names.get("SLURM_JOB_ID", 0)) % 20_000))
    number = int(names.get("WORLD_SIZE", 1)) if "RANK" in names else 1
    return number if number > 1 else 0


def _first_host(nodes: str) -> str:
    """``n[07-12,15],m1`` as ``n07``."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", nodes)
    return "".join(part or "" for part in match.groups()) if match else nodes


@contextmanager
def together() -> Iterator[bool]:
    """Whether this process is to do the run itself; where it is another one's, it has by then taken part in it."""
    if not given():
        yield True
    elif os.environ["RANK"] == "0":
        try:
            yield True
        finally:
            _announce(None)
    else:
        _follow()
        yield False


def _follow() -> None:
    from brd.training.worker import perform

    number = 0
    store = _store()
    while True:
        key = f"task{number}"
        try:
            while not store.check([key]):
                time.sleep(0.2)
            task = pickle.loads(store.get(key))
        except RuntimeError:
            return  # The one that announces is gone.
        if task is None:
            store.add("left", 1)
            return
        name, arguments = task
        perform(name, arguments, {})
        number += 1


def _announce(task: tuple[str, dict[str, Any]] | None) -> None:
    global _announced
    store = _store()
    store.set(f"task{_announced}", pickle.dumps(task))
    _announced += 1
    if task is None:
        # It may be this process that holds the store. Those that are still at work will not read it.
        end = time.monotonic() + _GRACE
        while store.add("left", 0) < given() - 1 and time.monotonic() < end:
            time.sleep(0.05)


_shared: Any = None


def _store() -> Any:
    """What all processes of a launcher read and write."""
    global _shared
    if _shared is None:
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        store, _, _ = next(rendezvous("env://", timeout=timedelta(minutes=10)))
        _shared = PrefixStore("brd", store)
    return _shared


def group_store() -> Any:
    """Where the processes of a launcher find each other for their sums."""
    from torch.distributed.distributed_c10d import PrefixStore

    return PrefixStore("group", _store())


# Processes that are started here.


class _Started:
    def __init__(self, number: int, task: tuple[str, dict[str, Any], tuple[str, ...]], logs: Path) -> None:
        self._number, self._task, self._logs = number, task, logs
        self._said: queue.Queue[tuple[int, Any]] = queue.Queue()
        self._interrupted = 0
        self._workers: list[subprocess.Popen[bytes]] = []

    def result(self, told: Told) -> Any:
        with tempfile.TemporaryDirectory(prefix="brd-") as meeting, self._signals():
            try:
                for rank in range(self._number):
                    self._workers.append(self._start(rank, meeting))
                return self._listen(told)
            finally:
                self._end()

    def _start(self, rank: int, meeting: str) -> subprocess.Popen[bytes]:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self._number),
            "LOCAL_WORLD_SIZE": str(self._number),
            "BRD_MEETING": str(Path(meeting) / "store"),
            "OMP_NUM_THREADS": str(max(1, cores // self._number)),
        }
        self._logs.parent.mkdir(parents=True, exist_ok=True)
        with self._log(rank).open("wb") as log:
            # In a session of their own: what the terminal sends goes to this process, which passes it on once.
            worker = subprocess.Popen(
                [sys.executable, "-m", "brd.training.worker"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        threading.Thread(target=self._hear, args=(rank, worker), daemon=True).start()
        assert worker.stdin
        with suppress(BrokenPipeError):
            pickle.dump(self._task, worker.stdin)
            worker.stdin.flush()
        return worker

    def _log(self, rank: int) -> Path:
        return self._logs.with_name(f"{self._logs.name}.{rank}.log")

    def _hear(self, rank: int, worker: subprocess.Popen[bytes]) -> None:
        assert worker.stdout
        with suppress(EOFError, OSError, pickle.UnpicklingError):
            while True:
                self._said.put((rank, pickle.load(worker.stdout)))
        self._said.put((rank, None))

    def _listen(self, told: Told) -> Any:
        running, result = self._number, None
        failures: list[tuple[int, int, str]] = []
        end: float | None = None
        while running:
            try:
                rank, said = self._said.get(timeout=0.2)
            except queue.Empty:
                if end and time.monotonic() > end:
                    self._signal(signal.SIGKILL)
                continue
            match said:
                case None:
                    running -= 1
                    if code := self._workers[rank].wait():
                        failures.append((2 if code < 0 else 4, rank, self._died(code)))
                case ("told", name, arguments):
                    told[name](*arguments)
                case ("log", text):
                    _log.warning("%s", text)
                case ("result", value):
                    result = value
                case ("error", kind, text):
                    failures.append(({"input": 0, "interrupted": 1}.get(kind, 3), rank, text))
            if failures and end is None:
                end = time.monotonic() + _GRACE
        if self._interrupted:
            raise KeyboardInterrupt
        if failures:
            self._fail(*min(failures))
        for rank in range(self._number):
            self._log(rank).unlink(missing_ok=True)
        return result

    def _died(self, code: int) -> str:
        if code == -signal.SIGKILL:
            return "was killed (by the system, if memory ran out)"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"

    def _fail(self, order: int, rank: int, text: str) -> None:
        if order == 0:
            raise BrdError(text)
        if order == 1:
            raise KeyboardInterrupt
        who = f"training: process {rank} of {self._number}"
        if order == 2:
            raise BrdError(f"{who} {text}; run the same command again, and it goes on from the last checkpoint")
        raise RuntimeError(f"{who}: {text} ({self._log(rank)} has it all)")

    def _signal(self, number: int) -> None:
        for worker in self._workers:
            if worker.poll() is None:
                worker.send_signal(number)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM passed on to all, so that they leave a checkpoint; the second one ends them at once."""

        def pass_on(number: int, *_: Any) -> None:
            self._interrupted += 1
            self._signal(number if self._interrupted == 1 else signal.SIGKILL)

        main = threading.current_thread() is threading.main_thread()
        before = {each: signal.signal(each, pass_on) for each in (signal.SIGINT, signal.SIGTERM)} if main else {}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _end(self) -> None:
        self._signal(signal.SIGKILL)
        for worker in self._workers:
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                if pipe:
                    with suppress(OSError):
                        pipe.close()
