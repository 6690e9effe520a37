"""Stopping on request: SIGTERM (preemption) and Ctrl-C."""

from __future__ import annotations

import os
import signal


def exit_code(number: int) -> int:
    """What the shell would report: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


class StopSignals:
    """Notes SIGTERM and Ctrl-C, so that the loop can save and stop in order.

    A second Ctrl-C ends the process at once; every file on disk is whole at
    any moment, so that does no harm either. A context manager, to be entered
    as often as needed; it restores the former handlers on exit.

    Attributes:
      received: number of the first signal; 0 until one comes.
    """

    def __init__(self):
        self.received = 0

    def __enter__(self) -> StopSignals:
        self._former = {
            number: signal.signal(number, self._note)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = number
