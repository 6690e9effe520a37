"""Several processes as one program: who writes, and how they agree.

Every process runs all of train.py on its own devices and its own rows. What
exists once (the run folder with its checkpoints, log and logits, and the
bucket that it is kept in) is process 0's alone: it reads and writes, and the
others are told. Whatever can go wrong for one of them alone is told to all,
so that none waits for ever. With one process all of this costs nothing.

They talk where jax.distributed keeps what all processes can read, not by the
devices: there one may wait for another as long as it takes, a bucket to be
fetched, say.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
from training.config import Arguments
from training.multihost import sharding

T = TypeVar("T")

# What they tell each other is numbered: all tell the same in the same order.
_numbers = itertools.count()

# One question after what another process tells; it is asked again.
_SECONDS_TO_ASK = 20


def is_primary() -> bool:
    """Whether this is process 0, which alone writes and speaks."""
    return jax.process_index() == 0


def run_on_primary(action: Callable[[], Any]) -> Any:
    """Runs `action` in process 0 and returns what it returned, in all.

    Args:
      action: its answer must go through JSON. It must not make processes
        talk.

    Raises:
      UserError: process 0 raised it; of the same kind in all.
    """
    if jax.process_count() == 1:
        return action()
    number = next(_numbers)
    if not is_primary():
        told = json.loads(_receive(number, 0))
        if "error" in told:
            raise decode_error(told["error"])
        return told["answer"]
    try:
        answer = action()
    except UserError as error:
        _publish(number, json.dumps({"error": encode_error(error)}))
        raise
    _publish(number, json.dumps({"answer": answer}))
    return answer


def run_on_all(action: Callable[[], T]) -> T:
    """Runs `action` in every process; if one of them fails, all do.

    Args:
      action: must not make processes talk.

    Raises:
      UserError: of the first process that raised one.
    """
    if jax.process_count() == 1:
        return action()
    problem, answer = "", None
    try:
        answer = action()
    except UserError as error:
        problem = json.dumps(encode_error(error))
    problems = all_gather_text(problem)
    if any(problems):
        raise decode_error(json.loads(next(filter(None, problems))))
    return answer


def all_gather_text(text: str) -> list[str]:
    """Returns the text of every process, by process number."""
    if jax.process_count() == 1:
        return [text]
    number = next(_numbers)
    _publish(number, text)
    return [_receive(number, process) for process in range(jax.process_count())]


def check_all_equal(identity: dict[str, Any]) -> None:
    """Refuses data that is not the same on all hosts.

    Args:
      identity: what is to be the same, as JSON.

    Raises:
      UserError: what differs, and where.
    """
    host = socket.gethostname()
    told = map(json.loads, all_gather_text(json.dumps([host, identity])))
    first_host, first = next(told)
    for number, (host, other) in enumerate(told, 1):
        different = [name for name in first if first[name] != other.get(name)]
        if different:
            raise UserError(
                f"{' and '.join(different)} of the data are others in process "
                f"{number} on {host} than in process 0 on {first_host}; give "
                "all hosts the same data"
            )


def encode_error(error: UserError) -> list[Any]:
    """Returns an error as JSON."""
    return [type(error).__name__, str(error), vars(error)]


def decode_error(description: list[Any]) -> UserError:
    """Returns the error that was `encode_error`, of the same kind."""
    name, text, attributes = description
    kinds = [UserError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    kind = next((k for k in kinds if k.__name__ == name), UserError)
    error = kind.__new__(kind, text)
    vars(error).update(attributes)
    return error


def _publish(number: int, text: str) -> None:
    own = jax.process_index()
    client = distributed.global_state.client
    client.key_value_set(f"sextet/said/{number}/{own}", text)


def _receive(number: int, process: int) -> str:
    """What `process` says, as soon as it does."""
    client, key = distributed.global_state.client, f"sextet/said/{number}"
    while True:
        try:
            return client.blocking_key_value_get(
                f"{key}/{process}", 1000 * _SECONDS_TO_ASK
            )
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def use_private_folder(
    arguments: Arguments, resources: contextlib.ExitStack
) -> Arguments:
    """Returns the command line, with an empty run folder but in process 0.

    Whatever lies under the same name on another host does not count.

    Args:
      arguments: of the command line.
      resources: whose end is the end of that folder.
    """
    if is_primary():
        return arguments
    folder = resources.enter_context(atomic_files.temporary_folder())
    return dataclasses.replace(arguments, workdir=folder / "run")


def broadcast_file(path: Path) -> None:
    """Copies a text file of process 0 to the others.

    Args:
      path: of each process its own; may name no file in process 0.

    Raises:
      UserError: it cannot be written.
    """

    def read() -> str | None:
        try:
            return path.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:  # Whoever needs it tells of it.
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
def silence_other_processes() -> Iterator[None]:
    """Silences stdout in all processes but process 0."""
    if is_primary():
        yield
        return
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        yield
