"""Threads that do not keep an interrupted program waiting."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor


@contextlib.contextmanager
def thread_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads; what has begun is finished before it closes.

    Unless the block raises, as Ctrl-C does: then the error leaves at once.
    A fit may be deep in a library for minutes, and its result is not wanted.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
