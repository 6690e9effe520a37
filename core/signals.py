"""SIGINT (Ctrl-C) and SIGTERM (preemption), whatever the process is doing.

Every package may import this module. It imports nothing heavy: a command calls
`install` before its own imports.
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

# A training loop finishes its step and saves within this limit; what takes
# longer, as a compilation may, is given up. Schedulers send SIGKILL after 30 s.
SECONDS_TO_STOP = 25.0

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}

# Wake-up pipe: the system writes each signal's number; None before `install`.
_pipe: int | None = None
_deferring: StopSignals | None = None
_cleanups: list[Callable[[], None]] = []


def install() -> None:
    """Installs handlers with which SIGINT and SIGTERM end the process at once.

    With exit code 130 or 143 (as a shell reports those signals), one line and
    no traceback. File writes are atomic, so nothing on disk is half written;
    temporary files are removed. A thread does it, because Python runs no
    signal handler before a long call into compiled code (a compilation, a
    booster's fit) has returned.

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


def register_cleanup(function: Callable[[], None]) -> None:
    """Has `function` called, in any thread, before an exit by `os._exit`."""
    _cleanups.append(function)


def run_cleanups() -> None:
    """Runs what was registered, and removes temporary files."""
    for function in _cleanups:
        function()
    atomic_files.remove_temporaries()


def exit_code(number: int) -> int:
    """Returns what a shell reports: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + number


class StopSignals:
    """Defers the first signal, so that a loop can save and stop in order.

    A reusable context manager. A second signal ends the process at once, and
    so does a stop that takes longer than `SECONDS_TO_STOP`. Without `install`,
    signals keep Python's default behaviour and nothing is deferred.

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
    """Forwards a signal that an event loop (uvloop) took from the pipe."""
    used = signal.set_wakeup_fd(_pipe, warn_on_full_buffer=False)
    if used != _pipe:
        signal.set_wakeup_fd(used, warn_on_full_buffer=False)
        os.write(_pipe, bytes([number]))


def _listen(pipe: int) -> None:
    received, seconds_left = 0, None
    while True:
        ready, _, _ = select.select([pipe], [], [], seconds_left)
        if not ready:
            _end(
                received, f"; the step took longer than {SECONDS_TO_STOP:.0f} s"
            )
        for number in os.read(pipe, 64):
            if number not in _NAMES:
                continue
            loop = _deferring  # Read once: the main thread may reset it.
            if received or loop is None:
                _end(number)
            received, seconds_left = number, SECONDS_TO_STOP
            loop.received = number


def _end(number: int, how: str = "") -> None:
    run_cleanups()
    text = f"stopped by {_NAMES[number]}{how}\n"
    if sys.stderr.isatty():
        text = "\x1b[?25h\n" + text  # A progress line hides the cursor.
    with contextlib.suppress(OSError):  # stderr may be a closed pipe.
        # Not by print: the main thread may hold the stream's lock.
        os.write(2, text.encode())
    os._exit(exit_code(number))
