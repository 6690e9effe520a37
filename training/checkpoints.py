"""Checkpoints on disk: the latest, and the best by an evaluation's metric.

The only file that knows Orbax (its v1 API).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from errors import UserError
from training.metrics import merit

_policies = ocp.training.preservation_policies


class Checkpoints:
    """The checkpoints of one run, newest and best kept, the rest deleted.

    A checkpoint holds a `TrainState` as a flat mapping of path to array, so
    it restores on any layout of devices, and a small `history` (JSON). Saving
    returns as soon as the arrays are copied; disk is written meanwhile, to a
    temporary name that is renamed when whole.

    Args:
      directory: `<run>/checkpoints`.
      metric: name of the metric that ranks checkpoints (`metrics.merit`).
      keep_best: how many of the best to keep besides the latest one.
      read_only: whether the folder is another run's: what a save in progress
        has written there so far is then not swept away.
    """

    def __init__(
        self,
        directory: Path,
        metric: str,
        keep_best: int = 1,
        *,
        read_only: bool = False,
    ):
        self._metric, self._directory = metric, directory
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        self._checkpointer = ocp.training.Checkpointer(
            directory.absolute(),
            context=context,
            save_decision_policy=_EveryCall(),
            preservation_policy=_policies.AnyPreservationPolicy(
                [
                    _policies.LatestN(1),
                    _policies.BestN(
                        get_metric_fn=self._rank,
                        n=keep_best,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            cleanup_tmp_directories=not read_only,
        )

    def latest(self) -> int | None:
        """Returns the step of the newest checkpoint, None if there is none."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def best(self) -> int | None:
        """Returns the step of the best checkpoint; the earliest of equals."""
        scored = [c for c in self._checkpointer.checkpoints if c.metrics]
        if not scored:
            return None
        return max(scored, key=lambda c: self._rank(c.metrics)).step

    def save(
        self,
        step: int,
        state: Any,
        history: dict[str, Any],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Saves `state` under `step`; a step that is there already is kept.

        Args:
          step: global step; the name of the checkpoint.
          state: a pytree of arrays.
          history: what else a continued run must know, as JSON.
          metrics: of the evaluation at this step; None if there was none.
        """
        self.wait()
        if any(c.step == step for c in self._checkpointer.checkpoints):
            return
        if metrics is not None:
            metrics = {**metrics, "step": step}
        # The next step overwrites the state's buffers (donation) while Orbax
        # may still be reading them, so it gets buffers of its own.
        self._checkpointer.save_async(
            step,
            _flatten(_copy(state)),
            metrics=metrics,
            custom_metadata=history,
        )

    def load(self, step: int, like: Any) -> Any:
        """Returns the state saved under `step`.

        Args:
          step: one of those that `latest` and `best` return.
          like: a pytree of arrays or `jax.ShapeDtypeStruct`s with shardings:
            the structure to fill and the placement to restore onto. A part of
            what was saved is enough.
        """
        abstract = {
            key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
            for key, x in _flatten(like).items()
        }
        self.wait()  # A checkpoint still being written has no files yet.
        flat = self._checkpointer.load(step, abstract)
        return jax.tree.unflatten(
            jax.tree.structure(like), [flat[key] for key in abstract]
        )

    def contents(self, step: int) -> dict[str, tuple[int, ...]]:
        """Returns {path: shape} of the arrays saved under `step`."""
        arrays = self._checkpointer.metadata(step).metadata
        return {path: tuple(array.shape) for path, array in arrays.items()}

    def history(self, step: int) -> dict[str, Any]:
        """Returns the `history` saved under `step`."""
        return self._checkpointer.metadata(step).custom_metadata

    def wait(self) -> None:
        """Blocks until everything handed to `save` is on disk.

        Raises:
          UserError: it could not be written; what was there before is intact.
        """
        try:
            self._checkpointer.wait()
        except OSError as error:
            raise UserError(
                f"cannot write a checkpoint in {self._directory}: {error}; "
                "free some space and run the same command again to continue"
            ) from error

    def close(self) -> None:
        """Waits for the disk and gives up the folder."""
        self._checkpointer.close()

    def _rank(self, metrics: dict[str, float]) -> tuple[float, int]:
        value = merit(self._metric, metrics[self._metric])
        return value if math.isfinite(value) else -math.inf, -metrics["step"]


class _EveryCall:
    """Saves whenever asked: the loop decides, not Orbax."""

    def should_save(self, step, previous_steps, *, context) -> bool:
        return True


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def _flatten(tree: Any) -> dict[str, Any]:
    """Returns {path: leaf}; paths are unique and stable over restarts."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }
