"""One pass over all images, on all cores, with progress on stderr."""

from __future__ import annotations

import concurrent.futures
import functools
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from core.hardware import usable_cores

E = TypeVar("E")
T = TypeVar("T")

# Silent for longer than this, a program seems to hang.
_SILENCE_SECONDS = 5.0


def every_image(
    function: Callable[[E, int], T],
    examples: E,
    rows: np.ndarray,
    title: str,
) -> Iterator[T]:
    """Yields `function(examples, row)` for every row, in order.

    In threads, as Pillow releases the interpreter lock. Progress and the time
    left go to stderr: a bar on a terminal, elsewhere a line every few seconds,
    nothing if it is done sooner.

    Args:
      function: called in a thread.
      examples: its first argument.
      rows: int `[N]`.
      title: of the work, for the progress.
    """
    with concurrent.futures.ThreadPoolExecutor(usable_cores()) as pool:
        # In portions, as the pool queues all that it is given.
        answers = (
            answer
            for portion in np.array_split(rows, len(rows) // 1024 + 1)
            for answer in pool.map(
                functools.partial(function, examples), portion.tolist()
            )
        )
        yield from with_progress(answers, len(rows), title)


def with_progress(answers: Iterator[T], total: int, title: str) -> Iterator[T]:
    """Yields `answers`, and prints progress and the time left to stderr.

    Args:
      answers: one for each image.
      total: how many there will be.
      title: of the work.
    """
    if sys.stderr.isatty():
        # Here, for loader processes import this module and draw no bar.
        from rich import progress
        from rich.console import Console

        yield from progress.track(
            answers,
            title,
            total,
            console=Console(stderr=True),
            transient=True,
        )
        return
    start = last = time.monotonic()
    for done, answer in enumerate(answers, 1):
        yield answer
        now = time.monotonic()
        if done == 1:  # What is compiled before it comes once.
            start = last = now
        if now - last > _SILENCE_SECONDS and done < total:
            last = now
            left = (now - start) / (done - 1) * (total - done)
            print(
                f"{title}: {done} of {total} images, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
