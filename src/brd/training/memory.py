"""What the C library's malloc does with freed memory."""

import ctypes
import gc
import sys
from typing import Any

# malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def _glibc() -> Any:
    """The C library of this process where it is glibc, else None."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep what is freed for the next request; whether it will. Elsewhere nothing is done.

    By default blocks of more than 32 MiB are mapped at every request and unmapped when freed, so the system zeroes the
    large temporaries of every training step anew, page by page. It takes both settings: no block mapped on its own,
    and the heap's top never given back. (M_MMAP_THRESHOLD would do for the first, but older glibc refuse more than
    32 MiB.)
    """
    library = _glibc()
    return library is not None and bool(library.mallopt(_M_MMAP_MAX, 0) and library.mallopt(_M_TRIM_THRESHOLD, -1))


def give_back_freed_memory() -> bool:
    """Return to the system what malloc holds free; whether anything was returned."""
    gc.collect()
    library = _glibc()
    return library is not None and bool(library.malloc_trim(0))
