"""Ctrl-C and SIGTERM (preemption), whatever the process is doing.

Every package may import this module; it imports nothing heavy, for a command
calls `watch` before its own imports.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable

from core import atomic_files

# A training that was asked to stop finishes its step and saves; what takes
# longer, as a compilation may, is given up. Schedulers kill after 30 seconds.
SECONDS_TO_STOP = 25.0

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}

# Where the system writes the number of each signal; None before `watch`.
_pipe: int | None = None
_deferring: StopSignals | None = None
_before_end: list[Callable[[], None]] = []


def watch() -> None:
    """From now on, Ctrl-C and SIGTERM end this process at once.

    With exit code 130 or 143 (as a shell reports those signals), one line and
    no traceback. What is on disk is whole at any moment, so that does no
    harm; half-written temporary files are removed. A thread does it, since
    Python itself would not hear a signal before a long call into compiled
    code (a compilation, a booster's fit) is over.

    To be called once, in the main thread.
    """
    global _pipe
    reading, _pipe = os.pipe()
    os.set_blocking(_pipe, False)
    for number in _NAMES:
        # As the shell does for what it starts in the background.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _in_main_thread)
    signal.set_wakeup_fd(_pipe, warn_on_full_buffer=False)
    threading.Thread(
        target=_listen, args=(reading,), name="signals", daemon=True
    ).start()


def before_end(function: Callable[[], None]) -> None:
    """Has `function` called, by any thread, when this process ends at once."""
    _before_end.append(function)


def tidy_up() -> None:
    """Does what must be done before `os._exit`; tidies half-written files."""
    for function in _before_end:
        function()
    atomic_files.remove_temporaries()


def exit_code(number: int) -> int:
    """What the shell would report: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


class StopSignals:
    """Notes the first signal, so that a loop can save and stop in order.

    A context manager, to be entered as often as needed. The process ends all
    the same at a second signal, at once, or when stopping takes longer than
    `SECONDS_TO_STOP`. Without `watch`, signals do what they do in any Python
    program, and nothing is noted.

    Attributes:
      received: number of the first signal; 0 until one comes.
    """

    def __init__(self):
        self.received = 0

    def __enter__(self) -> StopSignals:
        global _deferring
        _deferring = self
        return self

    def __exit__(self, *exception) -> None:
        global _deferring
        _deferring = None


def _in_main_thread(number: int, frame) -> None:
    """Hands on a signal that went to an event loop (uvloop) by mistake."""
    used = signal.set_wakeup_fd(_pipe, warn_on_full_buffer=False)
    if used != _pipe:
        signal.set_wakeup_fd(used, warn_on_full_buffer=False)
        os.write(_pipe, bytes([number]))


def _listen(pipe: int) -> None:
    noted, seconds_left = 0, None
    while True:
        ready, _, _ = select.select([pipe], [], [], seconds_left)
        if not ready:
            _end(noted, f"; the step took longer than {SECONDS_TO_STOP:.0f} s")
        for number in os.read(pipe, 64):
            if number not in _NAMES:
                continue
            loop = _deferring  # It may leave at any time.
            if noted or loop is None:
                _end(number)
            noted, seconds_left = number, SECONDS_TO_STOP
            loop.received = number


def _end(number: int, how: str = "") -> None:
    tidy_up()
    text = f"stopped by {_NAMES[number]}{how}\n"
    if sys.stderr.isatty():
        text = "\x1b[?25h\n" + text  # A progress line hides the cursor.
    with contextlib.suppress(OSError):  # Nobody may be listening any more.
        # Not by print: the main thread may hold the stream.
        os.write(2, text.encode())
    os._exit(exit_code(number))
