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
from orbax.checkpoint import v1 as ocp

from errors import UserError
from training import processes, seals
from training.metrics import merit

# Where Orbax keeps the arrays, and what it is told beside them.
ARRAYS = "state"
_DESCRIPTION, _METRICS = "_CHECKPOINT_METADATA", "metrics/metrics"


class Damaged(UserError):
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


class Stored:
    """The checkpoints in a folder; reading them changes nothing there.

    Args:
      directory: `<run>/checkpoints`.
      metric: name of the metric that ranks checkpoints (`metrics.merit`).
    """

    def __init__(self, directory: Path, metric: str):
        self._directory, self._metric = directory, metric

    def steps(self) -> list[int]:
        """Returns the steps of all that are finished, also damaged ones."""
        names = [path.name for path in self._directory.glob("[0-9]*")]
        # One that is being written has more than digits to its name.
        return sorted(int(name) for name in names if name.isdigit())

    def best(self) -> int | None:
        """Returns the step of the best checkpoint; the earliest of equals.

        One whose description is damaged is passed over.
        """
        self.wait()
        scored = {}
        for step in self.steps():
            try:
                metrics = self._content(step)["metrics"]
            except Damaged:
                continue
            if metrics is not None:
                scored[step] = self._rank(metrics)
        return max(scored, key=scored.get, default=None)

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
        self.wait()  # A checkpoint still being written has no files yet.
        # A part of the damage may meet one process alone.
        damage, flat = "", {}
        try:
            flat = self._load(step, abstract)
        except Damaged as damaged:
            damage = damaged.reason
        found = [reason for reason in processes.all_tell(damage) if reason]
        if found:
            raise Damaged(self._directory, step, found[0])
        return jax.tree.unflatten(
            jax.tree.structure(like), [flat[key] for key in abstract]
        )

    def contents(self, step: int) -> dict[str, tuple[int, ...]]:
        """Returns {path: shape} of the arrays saved under `step`.

        Raises:
          Damaged: what is on disk does not tell.
        """
        self.wait()
        try:
            arrays = ocp.metadata(
                self._folder(step), checkpointable_name=ARRAYS
            ).metadata
            return {path: tuple(x.shape) for path, x in arrays.items()}
        except Exception as error:  # As in `load`.
            reason = f"its arrays are not listed ({type(error).__name__})"
            raise Damaged(self._directory, step, reason) from error

    def history(self, step: int) -> dict[str, Any]:
        """Returns the `history` saved under `step`.

        Raises:
          Damaged: it is not what was saved.
        """
        self.wait()
        return self._content(step)["history"]

    def fingerprint(self, step: int) -> str:
        """Returns 16 hex digits that name the arrays saved under `step`.

        Raises:
          Damaged: what is on disk does not tell.
        """
        text = json.dumps(self._content(step)["checksums"], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def wait(self) -> None:
        """Blocks while this process writes there: never."""

    def _load(
        self, step: int, abstract: dict[str, jax.ShapeDtypeStruct]
    ) -> dict[str, jax.Array]:
        expected = self._content(step)["checksums"]
        try:
            flat = self._read(step, abstract)
        except Exception as error:  # Orbax has no one type for what is broken.
            reason = f"its arrays cannot be read ({type(error).__name__})"
            raise Damaged(self._directory, step, reason) from error
        # Orbax hands the shape back where it finds no array of that name.
        absent = [k for k in abstract if not isinstance(flat[k], jax.Array)]
        if absent:
            reason = f"{absent[0]} is missing"
            raise Damaged(self._directory, step, reason)
        found, _ = seals.examine({key: flat[key] for key in abstract})
        wrong = [key for key in found if found[key] != expected.get(key)]
        if wrong:
            reason = f"{wrong[0]} has changed"
            if len(wrong) > 1:
                reason += f", and {len(wrong) - 1} more"
            raise Damaged(self._directory, step, reason)
        return flat

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
            raise Damaged(self._directory, step, reason) from error

    def _rank(self, metrics: dict[str, float]) -> tuple[float, int]:
        value = merit(self._metric, metrics[self._metric])
        return value if math.isfinite(value) else -math.inf, -metrics["step"]


def _described(folder: Path) -> dict[str, Any]:
    """What was sealed into a checkpoint, its metrics being those on disk."""
    text = (folder / _DESCRIPTION).read_text(encoding="utf-8")
    content = seals.unseal(json.loads(text).get("custom_metadata"))
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
