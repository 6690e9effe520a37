"""What this machine has. Every package may import this module."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Returns the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # macOS and Windows have none.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
