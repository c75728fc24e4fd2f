import ctypes
import subprocess
import sys

import pytest

from brd.training import memory

# Page faults of a block that is freed and asked for again, as a share of its pages.
FAULTS = """
import ctypes, resource
from brd.training import memory
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
size = 64 << 20
def use():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = library.malloc(size)
    ctypes.memset(block, 1, size)
    library.free(block)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / size
print(use(), use(), memory.keep_freed_memory(), use(), use(), memory.give_back_freed_memory(), use())
"""

glibc = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="of glibc"
)


@glibc
def test_kept_memory_is_not_zeroed_again_until_it_is_given_back() -> None:
    output = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout.split()
    assert (output[2], output[5]) == ("True", "True")
    _, mapped, first, kept, given_back = (float(output[n]) for n in (0, 1, 3, 4, 6))
    # Where the system takes huge pages for all (Debian's own setting), a fault is of 2 MiB: 0.03 of the block's pages.
    assert min(mapped, first, given_back) > 0.02
    assert kept < min(mapped, first, given_back) / 10


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not memory.keep_freed_memory()
    assert not memory.give_back_freed_memory()
