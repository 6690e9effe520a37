"""Signals that ask a process to stop, whatever it is doing.

SIGINT (Ctrl-C), SIGTERM (preemption, `timeout`) and SIGHUP (a closed
terminal). Every package may import this module. It imports nothing heavy: a
command calls `install` before its own imports.
"""

from __future__ import annotations

import contextlib
import enum
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from core import atomic_files

# A training loop finishes its step and saves within this limit; what takes
# longer, as a compilation may, is given up. Schedulers send SIGKILL after 30 s.
SECONDS_TO_STOP = 25.0

# A Ctrl-C so long after the one before is a new wish. Below it, signals are a
# burst: schedulers and `timeout` signal a process and its group, a terminal
# every process in it, and a key that is held repeats.
SECONDS_OF_A_BURST = 1.0

_NAMES = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    signal.SIGHUP: "SIGHUP",
}
STOP_SIGNALS = frozenset(_NAMES)


# ---- What a signal means ----------------------------------------------------


class Stop(NamedTuple):
    """What signals have asked of a loop so far.

    Attributes:
      number: of the first signal; 0 until one comes.
      since: when it came, in seconds.
      pressed: when the last Ctrl-C came; the first is answered with the word
        that another one stops at once. None until then.
    """

    number: int = 0
    since: float = 0.0
    pressed: float | None = None

    def seconds_left(self, now: float) -> float | None:
        """Returns the time until the loop is given up; None without a stop."""
        if not self.number:
            return None
        return max(self.since + SECONDS_TO_STOP - now, 0.0)


class Action(enum.Enum):
    """What to do about a signal."""

    SAVE = "ask the loop to save and stop"
    TELL = "tell that another Ctrl-C stops at once"
    IGNORE = "nothing: it belongs to a wish that is being fulfilled"
    EXIT = "stop at once"


def decide(stop: Stop, number: int, now: float) -> tuple[Stop, Action]:
    """Decides what a signal means while a loop can save.

    One wish to stop may come as several signals, so repeated ones shorten
    nothing: only a person who was told of it stops the saving, and only by a
    Ctrl-C a second or more after the one before.

    Args:
      stop: what was asked for before.
      number: of the signal.
      now: in seconds, of a clock that never goes back.

    Returns:
      What is asked for now, and what to do.
    """
    by_hand = number == signal.SIGINT
    if not stop.number:
        return Stop(number, now, now if by_hand else None), Action.SAVE
    if not by_hand:
        return stop, Action.IGNORE
    before, stop = stop.pressed, stop._replace(pressed=now)
    if before is None:
        return stop, Action.TELL
    if now - before < SECONDS_OF_A_BURST:
        return stop, Action.IGNORE
    return stop, Action.EXIT


# ---- Handlers ---------------------------------------------------------------

# Wake-up pipe: the system writes each signal's number; None before `install`.
_pipe: int | None = None
_WAKE = b"\0"  # No signal's number.
_deferring: StopSignals | None = None
_deciding = threading.Lock()
_cleanups: list[Callable[[], None]] = []


def install() -> None:
    """Installs handlers with which a signal ends the process at once.

    With exit code 130, 143 or 129 (as a shell reports SIGINT, SIGTERM and
    SIGHUP), one line and no traceback. A signal that was ignored at the start,
    as after `nohup`, stays ignored. File writes are atomic, so nothing on disk
    is half written; temporary files are removed. A thread does it, because
    Python runs no signal handler before a long call into compiled code (a
    compilation, a booster's fit) has returned.

    To be called once, in the main thread.
    """
    global _pipe
    reading, _pipe = os.pipe()
    os.set_blocking(_pipe, False)
    for number in STOP_SIGNALS:
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
    """Returns what a shell reports, such as 130 for SIGINT."""
    return 128 + number


class StopSignals:
    """Defers signals, so that a loop can save and stop in order.

    A reusable context manager; `decide` says what further signals mean, also
    after the context, for what is left to do until the process ends. A stop
    that takes longer than `SECONDS_TO_STOP` ends the process at once. Without
    `install`, signals keep Python's default behaviour and nothing is deferred.
    """

    def __init__(self):
        self._stop = Stop()

    @property
    def received(self) -> int:
        """Number of the first signal; 0 until one comes."""
        return self._stop.number

    def agree(self, number: int) -> None:
        """Notes a stop that another process was asked for.

        The same wish may then still reach this process as a signal, also
        after the context.
        """
        global _deferring
        with _deciding:
            if self.received:
                return
            self._stop = Stop(number, time.monotonic())
            _deferring = self
        if _pipe is not None:
            # The listener waits without a limit until it hears of the stop.
            # If the pipe is full, it is about to.
            with contextlib.suppress(BlockingIOError):
                os.write(_pipe, _WAKE)

    def __enter__(self) -> StopSignals:
        global _deferring
        _deferring = self
        return self

    def __exit__(self, *exception) -> None:
        global _deferring
        with _deciding:
            if not self.received:
                _deferring = None

    def _handle(self, number: int) -> None:
        self._stop, action = decide(self._stop, number, time.monotonic())
        if action is Action.EXIT:
            _end(number)
        if action is Action.TELL or (
            action is Action.SAVE and number == signal.SIGINT
        ):
            _say("saving; Ctrl-C again to stop at once")
        elif action is Action.SAVE:
            _say(f"{_NAMES[number]}: saving")


def _in_main_thread(number: int, frame) -> None:
    """Forwards a signal that an event loop (uvloop) took from the pipe."""
    used = signal.set_wakeup_fd(_pipe, warn_on_full_buffer=False)
    if used != _pipe:
        signal.set_wakeup_fd(used, warn_on_full_buffer=False)
        os.write(_pipe, bytes([number]))


def _listen(pipe: int) -> None:
    while True:
        with _deciding:
            stop = Stop() if _deferring is None else _deferring._stop
        left = stop.seconds_left(time.monotonic())
        ready, _, _ = select.select([pipe], [], [], left)
        if not ready:
            _end(
                stop.number,
                f"; not done saving after {SECONDS_TO_STOP:.0f} s",
            )
        for number in os.read(pipe, 64):
            if number not in STOP_SIGNALS:
                continue
            with _deciding:
                if _deferring is None:
                    _end(number)
                _deferring._handle(number)


def _end(number: int, how: str = "") -> None:
    run_cleanups()
    _say(f"stopped by {_NAMES[number]}{how}", end=True)
    os._exit(exit_code(number))


def _say(text: str, end: bool = False) -> None:
    text += "\n"
    if sys.stderr is not None and sys.stderr.isatty():
        # After the echo of ^C; a progress line hides the cursor.
        text = ("\x1b[?25h" if end else "") + "\n" + text
    with contextlib.suppress(OSError):  # stderr may be a closed pipe.
        # Not by print: the main thread may hold the stream's lock.
        os.write(2, text.encode())
