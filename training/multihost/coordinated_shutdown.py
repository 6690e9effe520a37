"""Coordinated shutdown: whatever ends one process ends all of them.

A process that others wait for cannot simply exit: they would wait for ever (at
a collective, or at Orbax's barriers), or JAX would abort them with a page of
C++. So a process that fails broadcasts its error, and all exit with that
sentence and exit code; one that stops sending heartbeats counts as lost. The
primary exits last, because the key-value store that carries all of this lives
in it. With one process nothing of this happens.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator

import jax
from jax._src import distributed

from core import signals
from core.errors import TransientError, UserError
from training.multihost import comm

# A process without a heartbeat for so long is lost.
HEARTBEAT_SECONDS, HEARTBEAT_TIMEOUT_SECONDS = 2.0, 30.0

# What a process may take to close its contexts after its error: a checkpoint
# waits for all processes. Then the primary waits until the others have gone.
CLOSE_TIMEOUT_SECONDS, DISCONNECT_TIMEOUT_SECONDS = 20.0, 10.0

# What JAX's runtimes report when the process at the other end is gone.
_CONNECTION_LOST = re.compile(
    "Connection (closed|reset) by peer|Connection refused|Socket closed|NCCL|"
    "Broken pipe|Gloo|heartbeat|coordination service|DEADLINE_EX|UNAVAILABLE"
)

_exiting = threading.Lock()  # Held by the thread that ends this process.
# The error that this process has broadcast, and when.
_broadcast: tuple[UserError, float] | None = None


@contextlib.contextmanager
def shutdown_together() -> Iterator[None]:
    """Monitors the other processes, and exits when one of them fails.

    The outermost context of a program of several processes. An error that
    reaches it ends this process here, after it was broadcast.
    """
    if jax.process_count() == 1:
        yield
        return
    stop = threading.Event()
    monitor = threading.Thread(target=_monitor, args=(stop,), daemon=True)
    monitor.start()
    try:
        ended = None
        try:
            yield
        except SystemExit as exit_:
            ended = exit_
        _wait_for_peers()
        if ended is not None:
            raise ended
    except UserError as error:
        broadcast_error(error)
        with _exiting:
            _exit_with(error)
    except Exception as error:
        broadcast_error(_describe_bug(error))
        with _exiting:
            traceback.print_exc()
            _exit(1)
    finally:
        stop.set()
        monitor.join()


@contextlib.contextmanager
def broadcasting_errors() -> Iterator[None]:
    """Broadcasts an error at once, before the contexts around it close.

    The innermost context of such a program: what lies between it and
    `shutdown_together` closes after the broadcast. An error that only reports
    the loss of another process ends this one here.
    """
    try:
        yield
    except UserError as error:
        broadcast_error(error)
        raise
    except Exception as error:
        by_jax = isinstance(error, jax.errors.JaxRuntimeError)
        lost = by_jax and _CONNECTION_LOST.search(str(error))
        if jax.process_count() > 1 and lost:
            reason = str(error).splitlines()[0]
            shutdown(_peer_error() or _peer_lost(reason))
        broadcast_error(_describe_bug(error))
        raise


def broadcast_error(error: UserError) -> None:
    """Publishes the error with which this process, and so all, exit."""
    global _broadcast
    if jax.process_count() > 1:
        if _broadcast is None:
            _broadcast = error, time.monotonic()
        _publish("error", json.dumps(comm.encode_error(error)))


def shutdown(error: UserError) -> None:
    """Ends this process, from any of its threads, and so all processes."""
    with _exiting:
        broadcast_error(error)
        _exit_with(error)


def _monitor(stop: threading.Event) -> None:
    """Sends heartbeats, and watches heartbeats and errors of the others.

    A collective on devices may block for ever on a process that is gone, and
    raises no error that `broadcasting_errors` could catch. JAX's own heartbeat
    would end this process as well, later and with a page of C++.
    """
    peers = {*range(jax.process_count())} - {jax.process_index()}
    last_seen = dict.fromkeys(peers, ("", time.monotonic()))
    peer_failed = False
    for beat in itertools.count():
        if stop.wait(HEARTBEAT_SECONDS):
            return
        _publish("heartbeat", str(beat))
        if _broadcast is not None:
            # The main thread is about to exit, unless it waits for a peer.
            own, when = _broadcast
            if time.monotonic() - when > CLOSE_TIMEOUT_SECONDS:
                shutdown(own)
            continue
        error = _peer_error()
        # The main thread gets one heartbeat's time to fail by itself.
        if error is not None and peer_failed:
            shutdown(error)
        peer_failed = error is not None
        for process, (previous, when) in last_seen.items():
            latest = _read("heartbeat", process) or previous
            now = time.monotonic()
            if latest != previous:
                last_seen[process] = latest, now
            elif now - when > HEARTBEAT_TIMEOUT_SECONDS and not stop.is_set():
                shutdown(_peer_lost(f"process {process} fell silent"))


def _wait_for_peers() -> None:
    """Waits until all have come to their end, or the monitor ends this one.

    Another may still fail, closing its contexts.
    """
    _publish("done", "yes")
    while not all(_read("done", n) for n in range(jax.process_count())):
        time.sleep(0.05)


def _peer_error() -> UserError | None:
    """The error that another process has broadcast, if any."""
    for process in range(jax.process_count()):
        description = _read("error", process)
        if process != jax.process_index() and description:
            return comm.decode_error(json.loads(description))
    return None


def _peer_lost(reason: str) -> UserError:
    return TransientError(
        f"another of the {jax.process_count()} processes has gone "
        f"({reason[:200]}); start the same command in all of them again, and "
        "they go on from the last checkpoint"
    )


def _describe_bug(error: Exception) -> UserError:
    """What the other processes report when this one has a bug."""
    return UserError(
        f"process {jax.process_index()} failed ({type(error).__name__}); what "
        "it wrote on its own host says more"
    )


def _exit_with(error: UserError) -> None:
    """Prints the error and exits; sys.exit would wait for other threads."""
    with contextlib.suppress(OSError):  # stderr may be a closed pipe.
        print(f"error: {error}", file=sys.stderr, flush=True)
    _exit(error.exit_code)


def _exit(code: int) -> None:
    try:
        signals.run_cleanups()
        _disconnect()
        sys.stdout.flush()
    finally:
        os._exit(code)


def _disconnect() -> None:
    """Lets the primary, which serves the key-value store, exit last."""
    if not comm.is_primary():
        _publish("disconnected", "yes")
        return
    others = range(1, jax.process_count())
    deadline = time.monotonic() + DISCONNECT_TIMEOUT_SECONDS
    while not all(_read("disconnected", n) for n in others):
        if time.monotonic() > deadline:
            return
        time.sleep(0.1)


def _publish(name: str, text: str) -> None:
    """Writes to the key-value store of jax.distributed."""
    key = f"sextet/{name}/{jax.process_index()}"
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        distributed.global_state.client.key_value_set(
            key, text, allow_overwrite=True
        )


def _read(name: str, process: int) -> str | None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        return distributed.global_state.client.key_value_try_get(
            f"sextet/{name}/{process}"
        )
    return None
