"""Going through every image once, on all cores, saying how long it takes."""

from __future__ import annotations

import concurrent.futures
import functools
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from core.hardware import usable_cores
from input_pipeline.sources.base import Examples

T = TypeVar("T")

# Without a word for longer than this, a person thinks that it hangs.
_SILENCE_SECONDS = 5.0


def every_image(
    what: Callable[[Examples, int], T],
    images: Examples,
    rows: np.ndarray,
    title: str,
) -> Iterator[T]:
    """Yields `what(images, row)` for every row, in order.

    In threads, as Pillow lets go of the interpreter lock. How far it is and
    how long it will take is told on stderr: by a bar on a terminal, elsewhere
    by a line every few seconds; not at all if it is done sooner.

    Args:
      what: called in a thread.
      images: the images.
      rows: int `[N]`.
      title: what the person waits for.
    """
    with concurrent.futures.ThreadPoolExecutor(usable_cores()) as pool:
        # In portions, for the pool queues everything that it is handed.
        answers = (
            answer
            for portion in np.array_split(rows, len(rows) // 1024 + 1)
            for answer in pool.map(
                functools.partial(what, images), portion.tolist()
            )
        )
        yield from _told(answers, len(rows), title)


def _told(answers: Iterator[T], total: int, title: str) -> Iterator[T]:
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
        if now - last > _SILENCE_SECONDS and done < total:
            last = now
            left = (now - start) / done * (total - done)
            print(
                f"{title}: {done} of {total} images, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
