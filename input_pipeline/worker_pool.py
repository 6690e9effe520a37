"""How loader processes are given their work, and when they end."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from core import atomic_files, signals
from core.errors import UserError


@contextlib.contextmanager
def spooled(function: Callable[[int], Any]) -> Iterator[SpooledFunction]:
    """Yields the same function, kept in a file until the context ends.

    Args:
      function: picklable.

    Raises:
      UserError: there is no room for the file.
    """
    with atomic_files.temporary_folder(prefix="sextet-loader-") as folder:
        path = folder / "function"
        try:
            path.write_bytes(pickle.dumps(function))
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror}; free some space "
                "there, or set TMPDIR to another folder"
            ) from error
        yield SpooledFunction(path)


@dataclasses.dataclass(frozen=True)
class SpooledFunction:
    """A function that travels to worker processes in a file.

    What a spawned process is given goes through a pipe, and if it dies before
    it has read more than the pipe holds, its parent waits for ever (CPython's
    Popen keeps the reading end open). A file's name always fits, and is
    pickled once for all workers.
    """

    path: Path

    def __call__(self, step: int) -> Any:
        """Calls the function, which is loaded once."""
        return _load(self.path)(step)


@functools.lru_cache(maxsize=1)
def _load(path: Path) -> Callable[[int], Any]:
    return pickle.loads(path.read_bytes())


@contextlib.contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Processes that start inside ignore Ctrl-C, SIGTERM and SIGHUP.

    In a terminal, or from a scheduler, these reach every process of a job;
    the one that trains then finishes its step, for which it needs its
    loaders. A signal that is blocked here stays blocked in a child from its
    first moment on; other threads of this process receive it meanwhile.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.STOP_SIGNALS)
    try:
        # Starting the tracker, which a worker's start may do, would unblock
        # some of them. The tracker itself would end by SIGHUP.
        with _quiet_tracker():
            resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, signals.STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _quiet_tracker() -> Iterator[None]:
    """What it removes after a killed worker is nothing to warn of."""
    before = os.environ.get("PYTHONWARNINGS")
    quiet = "ignore:resource_tracker:UserWarning"
    os.environ["PYTHONWARNINGS"] = f"{before},{quiet}" if before else quiet
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def exit_with_parent(index: int, count: int) -> None:
    """Has a worker process exit when its parent dies; grain calls it first.

    grain ends its workers in good order; after a SIGKILL nobody does, and
    they would wait for ever on a queue that no one reads.

    Args:
      index: of the worker.
      count: of all workers.
    """
    parent = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
