"""How long the device has nothing to do, for want of images."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from ml_collections import ConfigDict

from core.hardware import usable_cores

# A share of waiting is reported once it has held for as long as this, and
# only if it matters.
WINDOW_SECONDS = 30.0
WINDOW_STEPS = 10
SHARE_TO_TELL, SHARE_TO_REMARK = 0.2, 0.05


class InputStallMonitor:
    """Measures the share of the time in which the device waits for batches.

    The loop dispatches a step and fetches the next batch while that runs, so
    most of the time that it spends on fetching costs nothing. What counts is
    the time from the end of the last step to the arrival of the next batch. A
    thread of its own sees when a step ends; nothing waits for that.

    Args:
      remedy: what to change when the device waits; see `remedy`.
      clock: seconds, for tests.

    Attributes:
      share: over the last `WINDOW_STEPS` steps and more; None before those.
    """

    def __init__(
        self, remedy: str, clock: Callable[[], float] = time.perf_counter
    ):
        self._remedy, self._clock = remedy, clock
        self._watch = ThreadPoolExecutor(1, "step-end")
        self._told = False
        self.share: float | None = None
        self.pause()
        self._start_window()

    def pause(self) -> None:
        """Tells that something else than steps comes next."""
        self._end: Future[float] | None = None
        self._since: float | None = None  # when the last batch arrived

    def _start_window(self) -> None:
        self._seconds, self._waited, self._steps = 0.0, 0.0, 0

    def fetch(self, batches: Iterator[Any]) -> Any:
        """Returns the next of `batches`, noting how long the device waits."""
        asked = self._clock()
        batch = next(batches)
        arrived = self._clock()
        if self._end is not None and self._since is not None:
            self._steps += 1
            self._seconds += arrived - self._since
            if self._end.done():
                idle_since = max(self._end.result(), asked)
                self._waited += max(arrived - idle_since, 0.0)
            if self._steps >= WINDOW_STEPS:
                self.share = self._waited / max(self._seconds, 1e-9)
        if self._end is not None:  # The first step is compiled; not counted.
            self._since = arrived
        return batch

    def dispatched(self, results: Any) -> None:
        """Notes a step.

        Args:
          results: what it will have computed when it has ended.
        """
        self._end = self._watch.submit(self._when_ready, results)

    def _when_ready(self, results: Any) -> float:
        # A step that fails has ended, too; reading its results raises.
        with contextlib.suppress(Exception):
            jax.block_until_ready(results)
        return self._clock()

    def remark(self) -> str:
        """What a line of progress says of it; '' if it is next to nothing."""
        if self.share is None or self.share < SHARE_TO_REMARK:
            return ""
        return f"  waiting {self.share:.0%}"

    def complaint(self) -> str:
        """One sentence if the device waits too long, once in a run; or ''."""
        seconds, share = self._seconds, self.share
        if seconds < WINDOW_SECONDS or share is None:
            return ""
        self._start_window()
        if self._told or share < SHARE_TO_TELL:
            return ""
        self._told = True
        return (
            f"the device waited for images for {share:.0%} of the last "
            f"{seconds:.0f} s; {self._remedy}"
        )

    def close(self) -> None:
        """Ends the thread once the last step has ended."""
        self._watch.shutdown(wait=False)


def remedy(config: ConfigDict, workers: int) -> str:
    """Returns what to change in a run whose device waits for images.

    Args:
      config: of the run.
      workers: its loader processes.
    """
    cores = usable_cores()
    ways = []
    if workers < cores - 1:
        ways.append(f"set --config.workers={cores - 1} (now {workers})")
    # A CPU would do itself what it waits for.
    if not config.augment.device and jax.default_backend() != "cpu":
        ways.append("set --config.augment.device=True")
    if config.data.source != "records":
        ways.append("convert the photos (python -m input_pipeline convert)")
    ways.append("keep photos of about twice config.image_size")
    return " or ".join(ways)
