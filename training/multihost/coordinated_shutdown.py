"""How several processes end: all of them, whatever ends one.

A process that another one waits for cannot just end: the other would wait for
ever, or be aborted by JAX with a page of C++. So one that fails announces the
sentence in which it does, and all end with that sentence and its exit code;
one that falls silent is missed. Process 0 goes last: all of this goes through
it. With one process nothing of this happens.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax._src import distributed

from core import signals
from core.errors import TryAgain, UserError
from training.multihost import comm

# A process that has not been heard of for so long has gone.
SECONDS_BETWEEN_BEATS, SECONDS_OF_SILENCE = 2.0, 30.0

# What process 0 may take to bring to an end what it has under way, and then
# to wait for the others.
SECONDS_TO_CLOSE, SECONDS_TO_PART = 25.0, 10.0

# What JAX's runtimes say when a process at the other end has gone.
_SIGNS_OF_LOSS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Socket closed",
    "Broken pipe",
    "Gloo",
    "NCCL",
    "heartbeat",
    "coordination service",
    "DEADLINE_EXCEEDED",
    "UNAVAILABLE",
)

_leaving = threading.Lock()  # Held by the thread that ends this process.
_announced = threading.Event()  # This process has failed, and said so.
_closers: list[Callable[[UserError], None]] = []


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Keeps watch over the other processes, and ends as they do.

    The outermost context of a program of several processes: an error ends
    this process here, once the others have heard of it.
    """
    if jax.process_count() == 1:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(over,), daemon=True)
    thread.start()
    try:
        yield
    except UserError as error:
        announce(error)
        with _leaving:
            _leave(error)
    except Exception as error:
        announce(_bug(error))
        with _leaving:
            traceback.print_exc()
            _end(1)
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def announcing() -> Iterator[None]:
    """Tells the others at once of an error that ends this process.

    The innermost context of such a program: what lies between it and
    `ending_together` is closed after that. An error that says no more than
    that another process has gone ends this one here.
    """
    try:
        yield
    except UserError as error:
        announce(error)
        raise
    except Exception as error:
        lost = isinstance(error, jax.errors.JaxRuntimeError) and any(
            sign in str(error) for sign in _SIGNS_OF_LOSS
        )
        if jax.process_count() > 1 and lost:
            why = str(error).splitlines()[0]
            _give_up(_what_others_announced() or _gone(why))
        announce(_bug(error))
        raise


def _bug(error: Exception) -> UserError:
    """What the others say of an error that is a bug in this process."""
    return UserError(
        f"process {jax.process_index()} failed ({type(error).__name__}); what "
        "it wrote on its own host says more"
    )


def announce(error: UserError) -> None:
    """Tells the other processes in which sentence this one, and they, end."""
    if jax.process_count() > 1:
        _announced.set()
        _put("end", json.dumps(comm.encode_error(error)))


@contextlib.contextmanager
def in_first(
    make: Callable[[], contextlib.AbstractContextManager[Any]],
) -> Iterator[None]:
    """Enters and leaves a context in process 0, and all wait for it.

    It is left also where process 0 cannot go on: by another thread then.

    Args:
      make: returns the context.

    Raises:
      UserError: in all processes, what entering or leaving raised.
    """

    def enter() -> None:
        inside.enter_context(make())

    def leave(error: BaseException | None) -> None:
        kind, trace = type(error) if error else None, None
        inside.pop_all().__exit__(kind, error, trace)

    with contextlib.ExitStack() as inside:
        comm.run_on_primary(enter)
        _closers.append(leave)
        try:
            yield
        except SystemExit as end:  # An orderly one, of all processes.
            code = end
            comm.run_on_primary(lambda: leave(code))
            raise
        else:
            comm.run_on_primary(lambda: leave(None))
        finally:
            _closers.remove(leave)


def leave(error: UserError) -> None:
    """Ends this process from any of its threads, and so all of them."""
    with _leaving:
        announce(error)
        _leave(error)


def _watch(over: threading.Event) -> None:
    """Tells the others that this process lives, and listens to them.

    A device that waits for a process that is no more may wait for ever, with
    no error for `announcing`. JAX's own watch would end this process as well,
    later and with a page of C++.
    """
    others = [
        process
        for process in range(jax.process_count())
        if process != jax.process_index()
    ]
    heard = dict.fromkeys(others, ("", time.monotonic()))
    ending = False
    for beat in itertools.count():
        if over.wait(SECONDS_BETWEEN_BEATS):
            return
        _put("beat", str(beat))
        if _announced.is_set():
            continue  # The main thread is about to end.
        error = _what_others_announced()
        if error is not None and ending:  # It has not come to it by itself.
            _give_up(error)
        ending = error is not None
        for process, (before, when) in heard.items():
            last, now = _get("beat", process) or before, time.monotonic()
            if last != before:
                heard[process] = last, now
            elif now - when > SECONDS_OF_SILENCE and not over.is_set():
                _give_up(_gone(f"process {process} fell silent"))


def _what_others_announced() -> UserError | None:
    for process in range(jax.process_count()):
        description = _get("end", process)
        if process != jax.process_index() and description:
            return comm.decode_error(json.loads(description))
    return None


def _gone(why: str) -> UserError:
    return TryAgain(
        f"another of the {jax.process_count()} processes has gone "
        f"({why[:200]}); start the same command in all of them again, and they "
        "go on from the last checkpoint"
    )


def _give_up(error: UserError) -> None:
    """Ends this process because of another one, closing what it can."""
    with _leaving:
        announce(error)
        thread = threading.Thread(target=_close, args=(error,), daemon=True)
        thread.start()
        thread.join(SECONDS_TO_CLOSE)
        _leave(error)


def _close(error: UserError) -> None:
    for closer in reversed(_closers):
        closer(error)


def _leave(error: UserError) -> None:
    """Ends this process at once, as an orderly end would wait for all."""
    with contextlib.suppress(OSError):  # Nobody may be reading any more.
        print(f"error: {error}", file=sys.stderr, flush=True)
    _end(error.exit_code)


def _end(code: int) -> None:
    try:
        signals.tidy_up()
        _part()
        sys.stdout.flush()
    finally:
        os._exit(code)


def _part() -> None:
    """Lets process 0 go last."""
    others = range(1, jax.process_count())
    if not others:
        return
    if comm.is_primary():
        _put("closed", "yes")
        until = time.monotonic() + SECONDS_TO_PART
        while time.monotonic() < until:
            if all(_get("gone", process) for process in others):
                return
            time.sleep(0.1)
        return
    beat, since = "", time.monotonic()
    while not _get("closed", 0):
        last = _get("beat", 0)
        if last != beat:
            beat, since = last, time.monotonic()
        if time.monotonic() - since > SECONDS_OF_SILENCE:
            break
        time.sleep(0.1)
    _put("gone", "yes")


def _put(name: str, text: str) -> None:
    """Writes what all processes can read, where jax.distributed keeps it."""
    key = f"sextet/{name}/{jax.process_index()}"
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        distributed.global_state.client.key_value_set(
            key, text, allow_overwrite=True
        )


def _get(name: str, process: int) -> str | None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        return distributed.global_state.client.key_value_try_get(
            f"sextet/{name}/{process}"
        )
    return None
