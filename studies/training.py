"""One run of train.py: claimed, started, watched, stopped, timed."""

from __future__ import annotations

import contextlib
import enum
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from core import signals
from core.atomic_files import cannot_write, write_text

ROOT = Path(__file__).parents[1]

# Beside the files of the run folder.
LOG = "train.log"
_CLOCK = "clock.json"
_LOCK = ".study.lock"

_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_BETWEEN_SAVES = 10.0


class End(enum.Enum):
    """How a process ended."""

    DONE = "came to its end"
    FAILED = "failed"
    CUT = "was not worth going on with"
    STOPPED = "the study was stopped"


class Ended(NamedTuple):
    """A process that has ended.

    Attributes:
      how: it did.
      reason: of a failure, in a few words.
    """

    how: End
    reason: str = ""


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[IO | None]:
    """Claims a run folder for this study among those that share its workdir.

    The lock is handed on to the run's process: a run whose study was killed
    counts as busy until it has saved.

    Args:
      folder: made if absent.

    Yields:
      The lock, for `train`; None where another has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / _LOCK, "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise cannot_write(folder, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield None
            return
        yield file


def train(
    folder: Path,
    words: Sequence[str],
    lock: IO,
    stop: signals.StopSignals,
    look: Callable[[], bool] = lambda: False,
) -> Ended:
    """Runs `train.py --workdir=<folder>` to its end, or to a signal.

    What it prints goes to `train.log` in the folder. A signal that the study
    gets is passed on, and the run saves.

    Args:
      folder: the run folder.
      words: of the command line, besides the folder.
      lock: of `claim`.
      stop: notes signals; entered by the caller.
      look: called several times a second; True ends the run, which saves.
    """
    script = str(ROOT / "train.py")
    with contextlib.ExitStack() as stack:
        try:
            log = stack.enter_context(open(folder / LOG, "ab"))
            log.write(f"$ train.py {' '.join(words)}\n".encode())
            log.flush()
        except OSError as error:
            raise cannot_write(folder / LOG, error) from error
        begin = log.tell()
        child = subprocess.Popen(
            [
                sys.executable,
                str(ROOT / "studies" / "child.py"),
                str(os.getpid()),
                script,
                f"--workdir={folder}",
                *words,
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(lock.fileno(),),
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    clock, how = _Clock(folder), None
    with clock:
        while child.poll() is None:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            clock.tick()
            if how is not None:
                continue
            if stop.received:
                how = End.STOPPED
            elif look():
                how = End.CUT
            if how is not None:
                child.send_signal(signal.SIGTERM)
    if child.returncode == 0:
        return Ended(End.DONE)
    if stop.received:  # Perhaps before this process has seen it.
        return Ended(End.STOPPED)
    if how is not None:
        return Ended(how)
    return Ended(End.FAILED, _reason(folder, begin, child.returncode))


def seconds(folder: Path) -> float:
    """Returns how long train.py has run there, over all starts."""
    try:
        return float(json.loads((folder / _CLOCK).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return 0.0


def last_line(folder: Path) -> str:
    """Returns the last that a run has printed."""
    lines = _tail(folder).splitlines()
    return lines[-1] if lines else ""


def share_done(folder: Path) -> float:
    """Returns the share of its steps that a run says it has done, or 0."""
    found = re.findall(r"^step +(\d+)/(\d+) ", _tail(folder), re.MULTILINE)
    return int(found[-1][0]) / int(found[-1][1]) if found else 0.0


def _reason(folder: Path, begin: int, code: int) -> str:
    lines = _tail(folder, begin).splitlines()
    told = [line for line in lines if line.startswith("error: ")]
    if told:
        return told[-1].removeprefix("error: ")
    if code < 0:
        return f"ended by {signal.Signals(-code).name}; see {folder / LOG}"
    last = f" ({lines[-1]})" if lines else ""
    return f"exit code {code}{last}; see {folder / LOG}"


def _tail(folder: Path, begin: int = 0) -> str:
    try:
        with open(folder / LOG, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(begin, size - 20_000))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


class _Clock:
    """Adds to the seconds of a folder, also if the study is killed."""

    def __init__(self, folder: Path):
        self._path, self._before = folder / _CLOCK, seconds(folder)
        self._started = self._saved = time.monotonic()

    def tick(self) -> None:
        """Saves now and then."""
        if time.monotonic() - self._saved > _SECONDS_BETWEEN_SAVES:
            self._save()

    def __enter__(self) -> _Clock:
        return self

    def __exit__(self, *exception) -> None:
        self._save()

    def _save(self) -> None:
        self._saved = time.monotonic()
        total = self._before + self._saved - self._started
        write_text(self._path, json.dumps(round(total, 1)) + "\n")
