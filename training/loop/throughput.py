"""How fast a run trains, and how long it has to go."""

from __future__ import annotations

import time


class Throughput:
    """Images per second, smoothed, of the time between `start` and `stop`."""

    def __init__(self):
        self.now = time.perf_counter()
        self._active = 0.0  # seconds that the clock has run
        self._since: float | None = None
        self._mark: tuple[float, int] | None = None
        self._speed: float | None = None

    def start(self) -> None:
        """Runs the clock, if it does not run already."""
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self) -> None:
        """Halts the clock until `start`."""
        if self._since is not None:
            self._active += time.perf_counter() - self._since
            self._since = None

    def advance(self, images: int) -> float | None:
        """Returns the speed; None at the first call, which saw compilation."""
        self.now = time.perf_counter()
        active = self._active
        if self._since is not None:
            active += self.now - self._since
        if self._mark is not None:
            speed = (images - self._mark[1]) / max(active - self._mark[0], 1e-9)
            old = speed if self._speed is None else self._speed
            self._speed = 0.7 * old + 0.3 * speed
        self._mark = (active, images)
        return self._speed
