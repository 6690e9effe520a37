"""Several processes as one program: who writes, and how they agree.

Every process runs all of train.py on its own devices and its own rows. What
exists once (the run folder, the log, the logits) is process 0's to write, and
whatever can go wrong for one of them alone is told to all, so that none waits
for ever. With one process all of this costs nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from errors import TRY_AGAIN_EXIT_CODE, UserError
from training import sharding

T = TypeVar("T")

# A process that has not been heard of for so long has gone.
SECONDS_BETWEEN_BEATS, SECONDS_OF_SILENCE = 2.0, 30.0

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


def is_first() -> bool:
    """Whether this is process 0, which alone writes and speaks."""
    return jax.process_index() == 0


def refuse_several(what: str) -> None:
    """Refuses what one process alone can do.

    Raises:
      UserError: there are several.
    """
    if jax.process_count() > 1:
        raise UserError(
            f"{what} takes one process, and these are {jax.process_count()}; "
            "give a --workdir on a disk that all hosts share, such as "
            "Filestore, or the bucket where gcsfuse mounts it"
        )


def first_tells(action: Callable[[], Any]) -> Any:
    """Runs `action` in process 0 and returns what it returned, in all.

    Args:
      action: its answer must go through JSON.

    Raises:
      UserError: process 0 raised it.
    """
    if jax.process_count() == 1:
        return action()
    told: dict[str, Any] = {}
    if is_first():
        try:
            told["answer"] = action()
        except UserError as error:
            told["error"] = str(error)
    text = json.dumps(told).encode()
    length = multihost_utils.broadcast_one_to_all(np.int32(len(text)))
    message = np.zeros(int(length), np.uint8)
    if is_first():
        message[:] = np.frombuffer(text, np.uint8)
    # As integers that a sum over processes leaves as they are.
    message = multihost_utils.broadcast_one_to_all(message)
    told = json.loads(bytes(np.asarray(message, np.uint8)))
    if "error" in told:
        raise UserError(told["error"])
    return told["answer"]


def together(action: Callable[[], T]) -> T:
    """Runs `action` in every process; if one of them fails, all do.

    Raises:
      UserError: of the first process that raised one.
    """
    if jax.process_count() == 1:
        return action()
    problem, answer = "", None
    try:
        answer = action()
    except UserError as error:
        problem = str(error)
    problems = all_tell(problem)
    if any(problems):
        raise UserError(next(filter(None, problems)))
    return answer


def all_tell(text: str) -> list[str]:
    """Returns the text of every process, by process number."""
    if jax.process_count() == 1:
        return [text]
    encoded = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(encoded)))
    message = np.zeros(max(1, int(lengths.max())), np.uint8)
    message[: len(encoded)] = encoded
    messages = multihost_utils.process_allgather(message)
    return [
        bytes(np.asarray(row[:length], np.uint8)).decode()
        for row, length in zip(messages, lengths, strict=True)
    ]


def of_first(path: Path, resources: contextlib.ExitStack) -> Path:
    """Returns `path` in process 0, a file that nobody reads in the others.

    Args:
      path: of what only process 0 is to write.
      resources: whose end is the end of that file.
    """
    if is_first():
        return path
    scratch = resources.enter_context(tempfile.TemporaryDirectory())
    return Path(scratch) / path.name


class Agreement:
    """The largest of a number that processes have, a step later.

    A tiny reduction is queued behind each training step and read once the
    next one is queued, so no process waits for it, and all of them learn the
    same at the same step. With one process it is the number itself, at once.

    Args:
      mesh: from `sharding.make_mesh`.
    """

    def __init__(self, mesh: Mesh):
        self._mesh, self._last = mesh, None
        self._largest = jax.jit(
            lambda numbers: numbers.max(),
            out_shardings=sharding.replicated(mesh),
        )

    def __call__(self, number: int) -> int:
        """Returns the largest `number` of all processes' last calls."""
        if jax.process_count() == 1:
            return number
        own = np.full(jax.local_device_count(), number, np.int32)
        queued = sharding.put_batch({"number": own}, self._mesh)["number"]
        before, self._last = self._last, self._largest(queued)
        return 0 if before is None else int(before)


@contextlib.contextmanager
def first_alone_speaks() -> Iterator[None]:
    """Silences stdout in all processes but process 0."""
    if is_first():
        yield
        return
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        yield


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Ends the program in one sentence when another process has gone.

    Leaving in the usual way would wait for the process that is no more. Exit
    code 75: all of them can be started again, and go on.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        lost = any(sign in str(error) for sign in _SIGNS_OF_LOSS)
        if jax.process_count() == 1 or not lost:
            raise
        _leave(str(error).splitlines()[0][:200])


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """Ends the program in one sentence when another process falls silent.

    A device that waits for a process that is no more may wait for ever, with
    no error for `ending_together`. JAX's own watch would end this process as
    well, later and with a page of C++ (and does so where it is process 0 that
    has gone, since all of this goes through it).
    """
    if jax.process_count() == 1:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(over,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(over: threading.Event) -> None:
    """Tells the others that this process lives, and listens to them."""
    # Where jax.distributed keeps what all processes can read; Orbax's
    # barriers stand there, too.
    client = distributed.global_state.client
    own = jax.process_index()
    heard = dict.fromkeys(range(jax.process_count()), ("", time.monotonic()))
    beats = itertools.count()
    while not over.wait(SECONDS_BETWEEN_BEATS):
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            beat = str(next(beats))
            client.key_value_set(f"sextet/{own}", beat, allow_overwrite=True)
        for process, (before, when) in heard.items():
            beat = before
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                beat = client.key_value_try_get(f"sextet/{process}")
            now = time.monotonic()
            if beat != before:
                heard[process] = beat, now
            elif now - when > SECONDS_OF_SILENCE and not over.is_set():
                _leave(f"process {process} fell silent")


def _leave(why: str) -> None:
    """Ends this process at once, as an orderly end would wait for all."""
    print(
        f"error: another of the {jax.process_count()} processes has gone "
        f"({why}); start the same command in all of them again, and they go "
        "on from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(TRY_AGAIN_EXIT_CODE)
