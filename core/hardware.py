"""CPU cores and the allocator. Every package may import this module."""

from __future__ import annotations

import ctypes
import os

# Options of glibc's mallopt(), from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8

_kept = 0  # Bytes kept so far; -1: all.


def usable_cores() -> int:
    """Returns the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # macOS and Windows have none.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_freed_memory(limit: int | None = None) -> None:
    """Has malloc keep freed memory instead of returning it to the kernel.

    glibc returns large blocks at once, and the kernel clears every page of a
    new one: of the buffer that each photo is decoded into, and of the hundreds
    of megabytes that each training step works in. Does nothing with another C
    library.

    Args:
      limit: bytes to keep at most; None keeps all, and must be called before
        threads are started. Of several calls the largest limit counts.
    """
    global _kept
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or _kept == -1 or (limit is not None and limit <= _kept):
        return
    if limit is None:
        # One arena for all threads: XLA allocates in a thread of its own, and
        # a thread's own arena is limited to 64 MB.
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
    else:
        # Up to half of a thread's arena.
        mallopt(_MMAP_THRESHOLD, min(limit >> 1, 1 << 25))
        mallopt(_TRIM_THRESHOLD, limit)
    _kept = -1 if limit is None else limit
