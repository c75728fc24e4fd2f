"""What this machine does fast: device, dtype and matrix-product rate, found by measuring."""

import os
import platform
import time
from functools import lru_cache
from typing import Any

import torch

from brd import remembered

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# A coarser dtype is taken where it is so many times as fast.
FASTER = 1.2


def device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def matmul_rate(dtype: torch.dtype, rows: int = 512, width: int = 1536, seconds: float = 0.25) -> float:
    """Median rate of ``(rows, width) @ (width, width)`` in operations per second."""
    a, b = torch.randn(rows, width).to(dtype), torch.randn(width, width).to(dtype)
    for _ in range(3):
        a @ b
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * rows * width * width / sorted(times)[len(times) // 2]


def processor() -> dict[str, Any]:
    """What a measured rate of this machine's CPU hangs on: the processor and its instruction set as torch may use it,
    the number of threads, the version of torch."""
    limits = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
    return {
        "processor": _processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "limits": {name: os.environ[name] for name in limits if name in os.environ},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _rates() -> dict[str, float]:
    """Matrix-product rates in float32 and bfloat16, in operations per second: measured once, then kept."""
    about = {"product": "512 x 1536 x 1536", **processor()}
    names = ("float32", "bfloat16")
    found = remembered.recall("speed", about)
    if found is None or not all(isinstance(found.get(name), float) and found[name] > 0 for name in names):
        found = {name: matmul_rate(DTYPES[name]) for name in names}
        remembered.keep("speed", about, found)
    return {name: float(found[name]) for name in names}


@lru_cache(maxsize=1)
def fast_dtype() -> torch.dtype:
    """bfloat16 where it beats float32 by a fifth or more, else float32.

    Processors without bf16 instructions run it several times slower than float32, whatever their name says,
    so on a CPU both are measured (half a second, once for a processor, number of threads and version of torch).
    """
    if device().type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device().type != "cpu":
        return torch.float32
    rates = _rates()
    return torch.bfloat16 if rates["bfloat16"] > FASTER * rates["float32"] else torch.float32


def choose_dtype(name: str) -> torch.dtype:
    """The dtype a recipe names; ``auto`` is the fast one of this machine."""
    return fast_dtype() if name == "auto" else DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def describe() -> dict[str, Any]:
    """Hardware facts for run.json."""
    facts: dict[str, Any] = {
        "machine": platform.machine(),
        "processor": _processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": str(device()),
        "fast_dtype": dtype_name(fast_dtype()),
    }
    if device().type == "cpu":
        facts["gflops"] = {name: round(rate / 1e9, 1) for name, rate in _rates().items()}
    if device().type == "cuda":
        facts["accelerator"] = torch.cuda.get_device_name()
    return facts


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = (line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
            return next(names, platform.machine())
    except OSError:
        return platform.processor() or platform.machine()
