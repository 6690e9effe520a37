"""What this machine has. Every package may import this module."""

from __future__ import annotations

import ctypes
import os

# Options of glibc's mallopt(), from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8

_kept = 0  # Bytes that are kept by now; -1: all.


def usable_cores() -> int:
    """Returns the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # macOS and Windows have none.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_freed_memory(limit: int | None = None) -> None:
    """Keeps memory that is freed for what needs some next.

    glibc hands back at once what is large, and memory taken anew is cleared by
    the kernel, page by page: what every photo is decoded into, and the
    hundreds of megabytes that every training step works in. Elsewhere than in
    the GNU C library nothing is changed.

    Args:
      limit: bytes to keep at most; None keeps all, and is to be asked for
        before threads are started. Asked twice, the larger one counts.
    """
    global _kept
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or _kept == -1 or (limit is not None and limit <= _kept):
        return
    if limit is None:
        # Only what all threads share grows as far as it must: XLA works in a
        # thread of its own, and a thread's own memory ends at 64 MB.
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
    else:
        # Up to half of what one thread's own memory may be.
        mallopt(_MMAP_THRESHOLD, min(limit >> 1, 1 << 25))
        mallopt(_TRIM_THRESHOLD, limit)
    _kept = -1 if limit is None else limit
