"""One of the processes that train together: ``python -m brd.training.worker``, started by ``launch``."""

import importlib
import logging
import os
import pickle
import sys
import threading
import traceback
from typing import Any

from brd.errors import BrdError

INTERRUPTED = 130


def perform(task: str, arguments: dict[str, Any], told: dict[str, Any]) -> Any:
    """Do a task (``module:function``) in this process, with others where the environment names some."""
    import torch.distributed as dist

    from brd.training import processes

    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ and not dist.is_initialized():
        _meet()
    module, _, name = task.partition(":")
    function = getattr(importlib.import_module(module), name)
    return function(**arguments, **(told if processes.is_main() else {}))


def _meet() -> None:
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import FileStore

    rank, number = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if "BRD_MEETING" in os.environ:
        store: Any = FileStore(os.environ["BRD_MEETING"], number)
        # accelerate asks for an address even where all have met.
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    else:
        from brd.training.launch import group_store

        store = group_store()
    device = None
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", 0)))
        device = torch.accelerator.current_accelerator()
    backend = dist.get_default_backend_for_device(device or "cpu")
    dist.init_process_group(backend, store=store, rank=rank, world_size=number)


class _Say:
    """Messages to the process that started this one."""

    def __init__(self, channel: Any) -> None:
        self._channel, self._lock = channel, threading.Lock()

    def __call__(self, *message: Any) -> None:
        with self._lock:
            pickle.dump(message, self._channel)
            self._channel.flush()


class _Tell:
    """A callback of the process that asked: called here, it is called there."""

    def __init__(self, say: _Say, name: str) -> None:
        self._say, self._name = say, name

    def __call__(self, *arguments: Any) -> None:
        self._say("told", self._name, arguments)


class _Logs(logging.Handler):
    def __init__(self, say: _Say) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say("log", record.getMessage())


def _end_with(parent: Any) -> None:
    """Whoever started this process and is gone may already be started anew: nothing more is written."""
    parent.read()
    os._exit(1)


def main() -> int:
    # What libraries print goes to the log; the output is for messages.
    say = _Say(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)
    task, arguments, names = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with, args=(sys.stdin.buffer,), daemon=True).start()
    if os.environ["RANK"] == "0":
        logging.getLogger("brd").addHandler(_Logs(say))
    code = 0
    try:
        result = perform(task, arguments, {name: _Tell(say, name) for name in names})
        if os.environ["RANK"] == "0":
            say("result", result)
    except BrdError as error:
        say("error", "input", str(error))
    except KeyboardInterrupt:
        say("error", "interrupted", "")
        code = INTERRUPTED
    except BaseException as error:
        traceback.print_exc()
        say("error", "other", f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Not by the usual way, on which a group whose other members have failed is waited for.
    os._exit(code)


if __name__ == "__main__":
    main()
