"""Checkpoints as they lie on disk, for whoever reads them.

With `checkpoints`, which writes them, the only file that knows Orbax (its v1
API).
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

# Where Orbax keeps the arrays, and what it is told beside them.
ARRAYS = "state"
_DESCRIPTION, _METRICS = "_CHECKPOINT_METADATA", "metrics/metrics"


class CorruptCheckpointError(UserError):
    """A checkpoint that is not what was saved.

    Attributes:
      step: which one.
    """

    def __init__(self, folder: Path, step: int, reason: str):
        super().__init__(
            f"the checkpoint {folder / str(step)} is damaged: {reason}; "
            "restore it from a copy, or take another run"
        )
        self.step, self.reason = step, reason


class CheckpointReader:
    """The checkpoints in a folder; reading them changes nothing there.

    Process 0 alone sees the folder. To be called in all processes, which are
    told what it finds.

    Args:
      directory: `<run>/checkpoints`.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        if jax.process_count() > 1:
            _leave_orbax_alone()

    def steps(self) -> list[int]:
        """Returns the steps of all that are finished, also damaged ones."""
        return comm.run_on_primary(self._steps)

    def best(self) -> int | None:
        """Returns the step of the best checkpoint; the earliest of equals.

        One whose description is damaged is passed over.
        """
        return comm.run_on_primary(self._best)

    def load(self, step: int, like: Any) -> Any:
        """Returns the state saved under `step`.

        Args:
          step: one of those that `latest` and `best` return.
          like: a pytree of arrays or `jax.ShapeDtypeStruct`s with shardings:
            the structure to fill and the placement to restore onto. A part of
            what was saved is enough.

        Raises:
          Damaged: what is on disk is not what was saved.
        """
        abstract = {
            key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
            for key, x in flatten(like).items()
        }
        expected = comm.run_on_primary(lambda: self._checksums(step))
        flat = self._placed(step, abstract)
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
          Damaged: what is on disk does not tell.
        """
        found = comm.run_on_primary(lambda: self._contents(step))
        return {path: tuple(shape) for path, shape in found.items()}

    def history(self, step: int) -> dict[str, Any]:
        """Returns the `history` saved under `step`.

        Raises:
          Damaged: it is not what was saved.
        """
        return comm.run_on_primary(lambda: self._history(step))

    def fingerprint(self, step: int) -> str:
        """Returns 16 hex digits that name the arrays saved under `step`.

        Raises:
          Damaged: what is on disk does not tell.
        """
        return comm.run_on_primary(lambda: self._fingerprint(step))

    # ---- In process 0 -------------------------------------------------------

    def _settle(self) -> None:
        """Blocks while this process writes there: never."""

    def _steps(self) -> list[int]:
        names = [path.name for path in self._directory.glob("[0-9]*")]
        # One that is being written has more than digits to its name.
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
        self._settle()  # A checkpoint still being written has no files yet.
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
        except Exception as error:  # As in `_whole`.
            reason = f"its arrays are not listed ({type(error).__name__})"
            raise CorruptCheckpointError(
                self._directory, step, reason
            ) from error

    def _placed(
        self, step: int, abstract: dict[str, jax.ShapeDtypeStruct]
    ) -> dict[str, jax.Array]:
        """Arrays from the disk, where they are to lie; in all processes."""
        if jax.process_count() == 1:
            return self._whole(step, abstract, jax.Array)
        found: dict[str, np.ndarray] = {}

        def read() -> None:
            types = dict.fromkeys(abstract, np.ndarray)
            found.update(self._whole(step, types, np.ndarray))
            for key, leaf in abstract.items():
                if (found[key].shape, found[key].dtype) != (
                    leaf.shape,
                    leaf.dtype,
                ):
                    reason = f"{key} has another shape"
                    raise CorruptCheckpointError(self._directory, step, reason)

        comm.run_on_primary(read)
        return host_transfer.broadcast_from_primary(found, abstract)

    def _whole(
        self, step: int, abstract: dict[str, Any], kind: type
    ) -> dict[str, Any]:
        """All of what is asked for, or an error."""
        try:
            flat = self._read(step, abstract)
        except Exception as error:  # Orbax has no one type for what is broken.
            reason = f"its arrays cannot be read ({type(error).__name__})"
            raise CorruptCheckpointError(
                self._directory, step, reason
            ) from error
        # Orbax hands the shape back where it finds no array of that name.
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
            return _described(self._directory / str(step))
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise CorruptCheckpointError(
                self._directory, step, reason
            ) from error

    def _rank(self, metrics: dict[str, float]) -> tuple[float, int]:
        value = metrics["merit"]
        return value if math.isfinite(value) else -math.inf, -metrics["step"]


def _described(folder: Path) -> dict[str, Any]:
    """What was sealed into a checkpoint, its metrics being those on disk."""
    text = (folder / _DESCRIPTION).read_text(encoding="utf-8")
    content = checksums.verify_hash(json.loads(text).get("custom_metadata"))
    if content["metrics"] is not None:
        text = (folder / _METRICS).read_text(encoding="utf-8")
        # As text, for a metric that is not a number does not equal itself.
        if json.dumps(json.loads(text)) != json.dumps(content["metrics"]):
            raise ValueError("its metrics have changed")
    return content


def flatten(tree: Any) -> dict[str, Any]:
    """Returns {path: leaf}; paths are unique and stable over restarts."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }


def _leave_orbax_alone() -> None:
    """Lets Orbax work in process 0 as if there were no others.

    It would wait for them to call it, too. Its own option for that,
    `active_processes`, is refused by its Checkpointer (0.12.8), and saving
    compares the folder's name over all processes in spite of it.
    """
    for module in (orbax_processes, orbax_v0_processes):
        for name, alone in (
            ("process_count", lambda: 1),
            ("should_skip_process_sync", lambda processes=None: True),
        ):
            getattr(module, name)  # Or another Orbax needs another way.
            setattr(module, name, alone)
