"""Host-side collectives: broadcast, gather, barrier-free agreement on errors.

Every process runs all of train.py on its own devices and its own rows. What
exists once (the run folder with its checkpoints, log and logits, and the
bucket that holds it) is read and written by the primary process alone, which
broadcasts what it found. An error that only one process can meet is raised in
all, so that none of them waits for ever. With one process all of this costs
nothing.

Messages travel through the key-value store of jax.distributed, not through
devices: a collective on devices times out, and fetching a run from a bucket
may take minutes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed
from jax.sharding import Mesh

from core import atomic_files
from core.errors import UserError
from training.multihost import sharding

T = TypeVar("T")

# Collectives are numbered: every process calls the same in the same order.
_sequence = itertools.count()

# Of one blocking read of the store; it is repeated until there is an answer.
_POLL_SECONDS = 20


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


def private_workdir(workdir: Path, resources: contextlib.ExitStack) -> Path:
    """Returns the run folder in the primary, an empty folder elsewhere.

    A folder of the same name on another host is never read or written.

    Args:
      workdir: of the command line.
      resources: on whose exit the temporary folder is removed.
    """
    if is_primary():
        return workdir
    return resources.enter_context(atomic_files.temporary_folder()) / "run"


def broadcast_file(path: Path) -> None:
    """Copies a text file of the primary process to all others.

    Args:
      path: local to each process; may be missing in the primary.

    Raises:
      UserError: it cannot be written.
    """

    def read() -> str | None:
        try:
            return path.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:  # Reported where the file is needed.
            return None

    if jax.process_count() == 1:
        return
    text = run_on_primary(read)

    def write() -> None:
        if text is None or is_primary():
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise UserError(
                f"cannot write {path} on host {socket.gethostname()}: "
                f"{error.strerror}; free some space there or set TMPDIR"
            ) from error

    run_on_all(write)


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
