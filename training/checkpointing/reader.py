"""Reads checkpoints, of this run or of another, and verifies checksums.

This, `manager` and `orbax_paths` are the only files that use Orbax (v1 API).
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from core import paths
from core.errors import UserError
from run_folder import layout
from training.checkpointing import checksums, orbax_paths
from training.multihost import comm

# Names in Orbax's layout: of the arrays, and of our metadata.
ARRAYS = "state"
_METADATA = "_CHECKPOINT_METADATA"

# Of a disk that has answered: a file is not there. Orbax raises OSErrors of its
# own for it, which have no number.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, None)


class CorruptCheckpointError(UserError):
    """The files of a checkpoint are not what was saved.

    Attributes:
      step: of the checkpoint.
      reason: what is wrong with it.
    """

    def __init__(self, folder: Path, step: int, reason: str):
        super().__init__(
            f"the checkpoint {folder / str(step)} is damaged: {reason}; "
            "restore it from a copy, or take another run"
        )
        self.step, self.reason = step, reason


class CheckpointReader:
    """The checkpoints in a folder, read-only.

    Every method is a collective, to be called in all processes. Each of them
    reads the shards of its own devices, and the primary the small rest, which
    it broadcasts.

    Args:
      directory: `<run>/checkpoints`, the same in all processes.

    Raises:
      UserError: Orbax cannot be given its name.
    """

    def __init__(self, directory: Path):
        paths.require_utf8(directory, "the folder of the checkpoints")
        self._directory = paths.absolute(directory)

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, also corrupt ones."""
        self._settle()
        return comm.run_on_primary(self._steps)

    def best(self) -> int | None:
        """Returns the step of the best checkpoint; the earliest of equals.

        Checkpoints with corrupt metadata are skipped.
        """
        self._settle()
        return comm.run_on_primary(self._best)

    def load(self, step: int, like: Any) -> Any:
        """Returns the state saved under `step`.

        Args:
          step: one of those that `latest` and `best` return.
          like: a pytree of arrays or `jax.ShapeDtypeStruct`s with shardings:
            the structure to fill and the shardings to restore onto. It may
            be a subset of what was saved.

        Raises:
          CorruptCheckpointError: a checksum differs, or a file is missing.
        """
        abstract = {
            key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
            for key, x in flatten(like).items()
        }
        self._settle()  # Before the commit there are no files to read.
        expected = comm.run_on_primary(lambda: self._checksums(step))
        # What is damaged may be a shard that one process alone reads.
        flat = comm.run_on_all(lambda: self._read_all(step, abstract))
        found, _ = checksums.checksum_arrays(flat)

        def check() -> None:
            wrong = [key for key in found if found[key] != expected.get(key)]
            if wrong:
                reason = f"{wrong[0]} has changed"
                if len(wrong) > 1:
                    reason += f", and {len(wrong) - 1} more"
                raise CorruptCheckpointError(self._directory, step, reason)

        comm.run_on_all(check)  # Each process checks what it has read itself.
        return jax.tree.unflatten(
            jax.tree.structure(like), [flat[key] for key in abstract]
        )

    def contents(self, step: int) -> dict[str, tuple[int, ...]]:
        """Returns {path: shape} of the arrays saved under `step`.

        Raises:
          CorruptCheckpointError: the metadata is corrupt.
        """
        self._settle()
        found = comm.run_on_primary(lambda: self._contents(step))
        return {path: tuple(shape) for path, shape in found.items()}

    def history(self, step: int) -> dict[str, Any]:
        """Returns the `history` saved under `step`.

        Raises:
          CorruptCheckpointError: the metadata is corrupt.
        """
        self._settle()
        return comm.run_on_primary(lambda: self._history(step))

    def fingerprint(self, step: int) -> str:
        """Returns a hash of the arrays saved under `step`, 16 hex digits.

        Raises:
          CorruptCheckpointError: the metadata is corrupt.
        """
        self._settle()
        return comm.run_on_primary(lambda: self._fingerprint(step))

    def _settle(self) -> None:
        """Waits for the writes of all processes; a reader has none."""

    # ---- In the primary -----------------------------------------------------

    def _steps(self) -> list[int]:
        return layout.committed_steps(self._directory)

    def _best(self) -> int | None:
        ranks = self._ranks(CorruptCheckpointError)
        evaluated = [step for step, rank in ranks.items() if rank]
        return max(evaluated, key=ranks.get, default=None)

    def _ranks(
        self, skipped: type[UserError]
    ) -> dict[int, tuple[float, int] | None]:
        """{step: rank}; None for one that was not evaluated.

        Args:
          skipped: a step whose metadata raises this is left out.
        """
        found = {}
        for step in self._steps():
            try:
                metrics = self._content(step)["metrics"]
            except skipped:
                continue
            found[step] = None
            if metrics is not None:
                value = metrics["merit"]
                merit = value if math.isfinite(value) else -math.inf
                # The earliest of equals is the best.
                found[step] = (merit, -metrics["step"])
        return found

    def _history(self, step: int) -> dict[str, Any]:
        return self._content(step)["history"]

    def _checksums(self, step: int) -> dict[str, int]:
        return self._content(step)["checksums"]

    def _fingerprint(self, step: int) -> str:
        text = json.dumps(self._content(step)["checksums"], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _contents(self, step: int) -> dict[str, tuple[int, ...]]:
        try:
            with orbax_paths.context(self._directory, alone=True):
                arrays = ocp.metadata(
                    self._directory / str(step), checkpointable_name=ARRAYS
                ).metadata
            return {path: tuple(x.shape) for path, x in arrays.items()}
        except Exception as error:  # As in `_read_all`.
            reason = f"its arrays are not listed ({type(error).__name__})"
            raise self._corrupt(step, reason, error) from error

    def _content(self, step: int) -> dict[str, Any]:
        """Returns a checkpoint's metadata, verified."""
        try:
            text = (self._directory / str(step) / _METADATA).read_text("utf-8")
            hashed = json.loads(text).get("custom_metadata")
            return checksums.verify_hash(hashed)
        except Exception as error:  # A driver's, when it is in a bucket.
            reason = (str(error).splitlines() or [""])[0]
            raise self._corrupt(step, reason, error) from error

    # ---- In every process ---------------------------------------------------

    def _read_all(
        self, step: int, abstract: dict[str, jax.ShapeDtypeStruct]
    ) -> dict[str, jax.Array]:
        """Reads arrays onto their shardings, or raises."""
        try:
            flat = self._read(step, abstract)
        except Exception as error:  # Orbax has no common base class.
            reason = f"its arrays cannot be read ({type(error).__name__})"
            raise self._corrupt(step, reason, error) from error
        # For a missing array Orbax returns the abstract one that it was given.
        absent = [k for k in abstract if not isinstance(flat[k], jax.Array)]
        if absent:
            reason = f"{absent[0]} is missing"
            raise CorruptCheckpointError(self._directory, step, reason)
        return {key: flat[key] for key in abstract}

    def _read(
        self, step: int, abstract: dict[str, jax.ShapeDtypeStruct] | None
    ) -> dict[str, Any]:
        # Alone: a process that cannot read its shards raises, and the others
        # would wait for it at Orbax's barrier.
        with orbax_paths.context(self._directory, alone=True):
            return ocp.load(
                self._directory / str(step),
                abstract,
                checkpointable_name=ARRAYS,
            )

    def _corrupt(self, step: int, reason: str, error: Exception) -> UserError:
        """The error for a checkpoint; another one if it cannot be read now.

        A disk or bucket that fails says nothing about what it holds.
        """
        if paths.is_remote(self._directory):
            if paths.is_unreachable(error):
                with paths.reaching([self._directory]):
                    raise error
            return CorruptCheckpointError(self._directory, step, reason)
        failed = system_error(error)
        if failed is None or failed.errno in _ABSENT:
            return CorruptCheckpointError(self._directory, step, reason)
        return UserError(
            f"cannot read the checkpoint {self._directory / str(step)}: "
            f"{failed.strerror or failed}; see to the disk and the right to "
            "read there, and run the same command again"
        )


def system_error(error: BaseException | None) -> OSError | None:
    """The error of the disk that caused `error`; None if there was none.

    TensorStore, which reads and writes the arrays, raises ValueErrors with the
    errno in their text.
    """
    if error is None or isinstance(error, OSError):
        return error
    number = re.search(r"os_error_code='(\d+)'", str(error))
    if number is not None:
        return OSError(int(number[1]), os.strerror(int(number[1])))
    return system_error(error.__cause__)


def flatten(tree: Any) -> dict[str, Any]:
    """Returns {path: leaf}; paths are unique and the same in every run."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }
