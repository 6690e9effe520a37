"""Host-side collectives: broadcast, gather, barrier-free agreement on errors.

Every process runs all of train.py on its own devices and its own rows, and
reads and writes its own shards of a checkpoint. What exists once (the log, the
logits, the rest of the run folder) is written by the primary process alone,
which broadcasts what it found there. An error that only one process can meet
is raised in all, so that none of them waits for ever. With one process all of
this costs nothing.

Messages travel through the key-value store of jax.distributed, not through
devices: a collective on devices times out, and a bucket may take minutes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed
from jax.sharding import Mesh

from core import paths
from core.errors import UserError
from training.multihost import sharding

T = TypeVar("T")

# Collectives are numbered: every process calls the same in the same order.
_sequence = itertools.count()

# Of one blocking read of the store; it is repeated until there is an answer.
_POLL_SECONDS = 20

# How late a shared disk may show a new file.
_SHARED_SECONDS = 15


def is_primary() -> bool:
    """Whether this is process 0, which alone writes files and prints."""
    return jax.process_index() == 0


def run_on_primary(action: Callable[[], Any]) -> Any:
    """Runs `action` in the primary process and broadcasts its result.

    Args:
      action: its result must be JSON-serialisable. It must not call any
        collective itself: the other processes would not.

    Raises:
      UserError: the primary raised it; the same class in every process.
    """
    if jax.process_count() == 1:
        return action()
    number = next(_sequence)
    if not is_primary():
        message = json.loads(_receive(number, 0))
        if "error" in message:
            raise decode_error(message["error"])
        return message["result"]
    try:
        result = action()
    except UserError as error:
        _publish(number, json.dumps({"error": encode_error(error)}))
        raise
    _publish(number, json.dumps({"result": result}))
    return result


class PrimaryActions:
    """Runs actions in the primary process, and raises their errors later.

    Where `run_on_primary` broadcasts after each action, the processes agree
    once after many. With one process, an error is raised at once.
    """

    def __init__(self):
        self._error: UserError | None = None

    def __call__(self, action: Callable[[], None]) -> None:
        """Runs an action in the primary, unless an earlier one has failed.

        Args:
          action: must not call any collective itself.
        """
        if not is_primary() or self._error is not None:
            return
        try:
            action()
        except UserError as error:
            if jax.process_count() == 1:
                raise
            self._error = error

    def agree(self) -> None:
        """Raises the error of the primary's actions, in all processes.

        Raises:
          UserError: an action raised it.
        """
        run_on_primary(self._raise)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def run_on_all(action: Callable[[], T]) -> T:
    """Runs `action` in every process; if it fails in one, it fails in all.

    Args:
      action: must not call any collective itself.

    Raises:
      UserError: of the lowest-numbered process that raised one.
    """
    if jax.process_count() == 1:
        return action()
    error_text, result = "", None
    try:
        result = action()
    except UserError as error:
        error_text = json.dumps(encode_error(error))
    errors = all_gather_text(error_text)
    if any(errors):
        raise decode_error(json.loads(next(filter(None, errors))))
    return result


def all_gather_text(text: str) -> list[str]:
    """Returns the text of every process, by process number."""
    if jax.process_count() == 1:
        return [text]
    number = next(_sequence)
    _publish(number, text)
    return [_receive(number, process) for process in range(jax.process_count())]


def check_all_equal(identity: dict[str, Any]) -> None:
    """Checks that all hosts read the same data.

    Args:
      identity: of this host's data (classes, fold and row hashes), as JSON.

    Raises:
      UserError: what differs, and where.
    """
    host = socket.gethostname()
    gathered = map(json.loads, all_gather_text(json.dumps([host, identity])))
    first_host, first = next(gathered)
    for number, (host, other) in enumerate(gathered, 1):
        different = [name for name in first if first[name] != other.get(name)]
        if different:
            raise UserError(
                f"{' and '.join(different)} of the data are others in process "
                f"{number} on {host} than in process 0 on {first_host}; give "
                "all hosts the same data"
            )


def encode_error(error: UserError) -> list[Any]:
    """Returns an error as JSON-serialisable values."""
    return [type(error).__name__, str(error), vars(error)]


def decode_error(description: list[Any]) -> UserError:
    """Inverse of `encode_error`: an error of the same class."""
    name, text, attributes = description
    classes = [UserError]
    for known in classes:  # Grows while it is walked: all subclasses.
        classes += known.__subclasses__()
    cls = next((c for c in classes if c.__name__ == name), UserError)
    error = cls.__new__(cls, text)
    vars(error).update(attributes)
    return error


def _publish(number: int, text: str) -> None:
    own = jax.process_index()
    client = distributed.global_state.client
    client.key_value_set(f"sextet/message/{number}/{own}", text)


def _receive(number: int, process: int) -> str:
    """Blocks until `process` has published its message."""
    client, key = distributed.global_state.client, f"sextet/message/{number}"
    while True:
        try:
            return client.blocking_key_value_get(
                f"{key}/{process}", 1000 * _POLL_SECONDS
            )
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def check_shared(folder: Path) -> None:
    """Checks that all processes see the same folder.

    Args:
      folder: on a disk of each of them; made in the primary if it is missing.
        In a bucket it is the same by its name.

    Raises:
      UserError: the primary cannot write there, or another process does not
        see what it wrote.
    """
    if jax.process_count() == 1 or paths.is_remote(folder):
        return

    token, path = secrets.token_hex(8), folder / ".shared"

    def write() -> str:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(token)
        except OSError as error:
            raise UserError(
                f"cannot write the run folder {folder}: {error.strerror}; "
                "choose another --workdir"
            ) from error
        return token

    def look() -> None:
        until = time.monotonic() + _SHARED_SECONDS
        while True:
            with contextlib.suppress(OSError):
                os.listdir(folder)  # Makes a file server's client look again.
                if path.read_text() == expected:
                    return
            if time.monotonic() > until:
                raise UserError(
                    f"{folder} on host {socket.gethostname()} is not the "
                    "folder that process 0 writes to; give a --workdir on a "
                    "disk that all hosts share, or in a bucket"
                )
            time.sleep(0.2)

    expected = run_on_primary(write)
    try:
        run_on_all(look)
    finally:
        if is_primary():
            path.unlink(missing_ok=True)


class AgreedMax:
    """All-reduce (max) of a number over processes, delayed by one step.

    A tiny reduction is queued behind each training step and read once the
    next one is queued, so the host never blocks on it and all processes see
    the same value at the same step. With one process it is the number itself,
    without delay.

    Args:
      mesh: from `sharding.make_mesh`.
    """

    def __init__(self, mesh: Mesh):
        self._mesh, self._pending = mesh, None
        self._reduce = jax.jit(
            lambda numbers: numbers.max(),
            out_shardings=sharding.replicated(mesh),
        )

    def __call__(self, number: int) -> int:
        """Returns the maximum over all processes of the previous call."""
        if jax.process_count() == 1:
            return number
        own = np.full(jax.local_device_count(), number, np.int32)
        queued = sharding.put_batch({"number": own}, self._mesh)["number"]
        done, self._pending = self._pending, self._reduce(queued)
        return 0 if done is None else int(done)


@contextlib.contextmanager
def silence_other_processes() -> Iterator[None]:
    """Discards stdout in every process but the primary."""
    if is_primary():
        yield
        return
    with (
        open(os.devnull, "w", encoding="utf-8") as devnull,
        contextlib.redirect_stdout(devnull),
    ):
        yield
