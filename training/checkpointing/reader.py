"""Reads checkpoints, of this run or of another, and verifies checksums.

This and `manager` are the only files that use Orbax (its v1 API).
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint._src.multihost import multihost as orbax_v0_processes
from orbax.checkpoint.experimental.v1._src.synchronization import (
    multihost as orbax_processes,
)

from core.errors import UserError
from training.checkpointing import checksums
from training.multihost import comm, host_transfer

# Names in Orbax's layout: of the arrays, of our metadata, of the metrics.
ARRAYS = "state"
_METADATA, _METRICS = "_CHECKPOINT_METADATA", "metrics/metrics"


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

    The primary process alone accesses the folder and broadcasts what it finds:
    every method is a collective, to be called in all processes.

    Args:
      directory: `<run>/checkpoints`.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        if jax.process_count() > 1:
            _run_orbax_in_one_process()

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, also corrupt ones."""
        return comm.run_on_primary(self._steps)

    def best(self) -> int | None:
        """Returns the step of the best checkpoint; the earliest of equals.

        Checkpoints with corrupt metadata are skipped.
        """
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
        expected = comm.run_on_primary(lambda: self._checksums(step))
        flat = self._restore(step, abstract)
        found, _ = checksums.checksum_arrays(flat)
        wrong = [key for key in found if found[key] != expected.get(key)]
        if wrong:
            reason = f"{wrong[0]} has changed"
            if len(wrong) > 1:
                reason += f", and {len(wrong) - 1} more"
            raise CorruptCheckpointError(self._directory, step, reason)
        return jax.tree.unflatten(
            jax.tree.structure(like), [flat[key] for key in abstract]
        )

    def contents(self, step: int) -> dict[str, tuple[int, ...]]:
        """Returns {path: shape} of the arrays saved under `step`.

        Raises:
          CorruptCheckpointError: the metadata is corrupt.
        """
        found = comm.run_on_primary(lambda: self._contents(step))
        return {path: tuple(shape) for path, shape in found.items()}

    def history(self, step: int) -> dict[str, Any]:
        """Returns the `history` saved under `step`.

        Raises:
          CorruptCheckpointError: the metadata is corrupt.
        """
        return comm.run_on_primary(lambda: self._history(step))

    def fingerprint(self, step: int) -> str:
        """Returns a hash of the arrays saved under `step`, 16 hex digits.

        Raises:
          CorruptCheckpointError: the metadata is corrupt.
        """
        return comm.run_on_primary(lambda: self._fingerprint(step))

    # ---- In the primary -----------------------------------------------------

    def _settle(self) -> None:
        """Waits for this process's own writes; a reader has none."""

    def _steps(self) -> list[int]:
        names = [path.name for path in self._directory.glob("[0-9]*")]
        # A checkpoint that is being written has a longer name.
        return sorted(int(name) for name in names if name.isdigit())

    def _best(self) -> int | None:
        self._settle()
        scored = {}
        for step in self._steps():
            try:
                metrics = self._content(step)["metrics"]
            except CorruptCheckpointError:
                continue
            if metrics is not None:
                scored[step] = self._rank(metrics)
        return max(scored, key=scored.get, default=None)

    def _history(self, step: int) -> dict[str, Any]:
        self._settle()
        return self._content(step)["history"]

    def _checksums(self, step: int) -> dict[str, int]:
        self._settle()  # Before the commit there are no files to read.
        return self._content(step)["checksums"]

    def _fingerprint(self, step: int) -> str:
        text = json.dumps(self._content(step)["checksums"], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _contents(self, step: int) -> dict[str, tuple[int, ...]]:
        self._settle()
        try:
            arrays = ocp.metadata(
                self._folder(step), checkpointable_name=ARRAYS
            ).metadata
            return {path: tuple(x.shape) for path, x in arrays.items()}
        except Exception as error:  # As in `_read_all`.
            reason = f"its arrays are not listed ({type(error).__name__})"
            raise CorruptCheckpointError(
                self._directory, step, reason
            ) from error

    def _restore(
        self, step: int, abstract: dict[str, jax.ShapeDtypeStruct]
    ) -> dict[str, jax.Array]:
        """Reads arrays onto their shardings; in all processes."""
        if jax.process_count() == 1:
            return self._read_all(step, abstract, jax.Array)
        found: dict[str, np.ndarray] = {}

        def read() -> None:
            types = dict.fromkeys(abstract, np.ndarray)
            found.update(self._read_all(step, types, np.ndarray))
            for key, leaf in abstract.items():
                if (found[key].shape, found[key].dtype) != (
                    leaf.shape,
                    leaf.dtype,
                ):
                    reason = f"{key} has another shape"
                    raise CorruptCheckpointError(self._directory, step, reason)

        comm.run_on_primary(read)
        return host_transfer.broadcast_from_primary(found, abstract)

    def _read_all(
        self, step: int, abstract: dict[str, Any], kind: type
    ) -> dict[str, Any]:
        """Reads all of `abstract`, or raises CorruptCheckpointError."""
        try:
            flat = self._read(step, abstract)
        except Exception as error:  # Orbax has no common base class.
            reason = f"its arrays cannot be read ({type(error).__name__})"
            raise CorruptCheckpointError(
                self._directory, step, reason
            ) from error
        # For a missing array Orbax returns the abstract one that it was given.
        absent = [k for k in abstract if not isinstance(flat[k], kind)]
        if absent:
            reason = f"{absent[0]} is missing"
            raise CorruptCheckpointError(self._directory, step, reason)
        return {key: flat[key] for key in abstract}

    def _read(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            return ocp.load(
                self._folder(step), abstract, checkpointable_name=ARRAYS
            )

    def _folder(self, step: int) -> Path:
        return self._directory.absolute() / str(step)

    def _content(self, step: int) -> dict[str, Any]:
        try:
            return _read_metadata(self._directory / str(step))
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise CorruptCheckpointError(
                self._directory, step, reason
            ) from error

    def _rank(self, metrics: dict[str, float]) -> tuple[float, int]:
        value = metrics["merit"]
        return value if math.isfinite(value) else -math.inf, -metrics["step"]


def _read_metadata(folder: Path) -> dict[str, Any]:
    """Returns a checkpoint's metadata, verified; its metrics, too."""
    text = (folder / _METADATA).read_text(encoding="utf-8")
    content = checksums.verify_hash(json.loads(text).get("custom_metadata"))
    if content["metrics"] is not None:
        text = (folder / _METRICS).read_text(encoding="utf-8")
        # As text, because NaN does not equal itself.
        if json.dumps(json.loads(text)) != json.dumps(content["metrics"]):
            raise ValueError("its metrics have changed")
    return content


def flatten(tree: Any) -> dict[str, Any]:
    """Returns {path: leaf}; paths are unique and the same in every run."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }


def _run_orbax_in_one_process() -> None:
    """Makes Orbax work in the primary as if there were no other processes.

    It would wait for them to call it, too. Its own option for that,
    `active_processes`, is rejected by its Checkpointer (0.12.8), and saving
    compares the folder's name over all processes in spite of it.
    """
    for module in (orbax_processes, orbax_v0_processes):
        for name, alone in (
            ("process_count", lambda: 1),
            ("should_skip_process_sync", lambda processes=None: True),
        ):
            getattr(module, name)  # Fails if another version has renamed it.
            setattr(module, name, alone)
