"""Checkpoints on disk: the latest, and the best by an evaluation's metric.

The only file that knows Orbax (its v1 API).
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from errors import UserError
from training import processes, seals
from training.metrics import merit

_policies = ocp.training.preservation_policies

# Where Orbax keeps what it is told beside the arrays, inside a checkpoint.
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


class Checkpoints:
    """The checkpoints of one run, newest and best kept, the rest deleted.

    A checkpoint holds a `TrainState` as a flat mapping of path to array, so
    it restores on any layout of devices, and a small `history` (JSON), both
    with checksums. Saving returns as soon as the arrays are copied and summed
    up; disk is written meanwhile, to a temporary name, renamed when whole.

    So the disk holds 1 + `keep_best` checkpoints, and one more while it is
    being written: each about three times the parameters (four or five with
    EMA), in float32.

    Args:
      directory: `<run>/checkpoints`.
      metric: name of the metric that ranks checkpoints (`metrics.merit`).
      keep_best: how many of the best to keep besides the latest one.
      read_only: whether the folder is another run's: what a save in progress
        has written there so far is then not swept away, and nothing damaged
        set aside.
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
        self._keep_best, self._read_only = keep_best, read_only
        self._set_aside: list[int] = []
        self._set_aside += processes.first_tells(self._check_descriptions)
        self._open()

    def _open(self) -> None:
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        self._checkpointer = ocp.training.Checkpointer(
            self._directory.absolute(),
            context=context,
            save_decision_policy=_EveryCall(),
            preservation_policy=_policies.AnyPreservationPolicy(
                [
                    _policies.LatestN(1),
                    _policies.BestN(
                        get_metric_fn=self._rank,
                        n=self._keep_best,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            cleanup_tmp_directories=not self._read_only,
        )

    def latest(self) -> int | None:
        """Returns the step of the newest checkpoint, None if there is none.

        Raises:
          UserError: there were some, but every one is damaged.
        """
        self.wait()
        newest = self._checkpointer.latest
        if newest is None and self._set_aside:
            raise UserError(
                f"every checkpoint in {self._directory} was damaged and is now "
                f"in {self._aside}; restore one from a copy, or delete the run "
                "folder to start over"
            )
        return None if newest is None else newest.step

    def best(self) -> int | None:
        """Returns the step of the best checkpoint; the earliest of equals."""
        self.wait()
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

        Raises:
          UserError: the state holds a number that is not finite, or the disk
            cannot be written; what was there before is intact.
        """
        self.wait()
        if any(c.step == step for c in self._checkpointer.checkpoints):
            return
        if metrics is not None:
            metrics = {**metrics, "step": step}
        # The next step overwrites the state's buffers (donation) while Orbax
        # may still be reading them, so it gets buffers of its own.
        state = _flatten(_copy(state))
        checksums, infinite = seals.examine(state)
        if infinite:
            raise UserError(
                f"the training diverged by step {step}: {infinite[0]} is not "
                "finite; lower the stage's learning_rate or set its clip_norm "
                "to 1.0, in a new --workdir"
            )
        content = {
            "history": history,
            "metrics": metrics,
            "checksums": checksums,
        }
        self._checkpointer.save_async(
            step,
            state,
            metrics=metrics,
            # Orbax writes it last: nobody may change it until then.
            custom_metadata=copy.deepcopy(seals.seal(content)),
        )

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
            for key, x in _flatten(like).items()
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

    def _load(
        self, step: int, abstract: dict[str, jax.ShapeDtypeStruct]
    ) -> dict[str, jax.Array]:
        expected = self._content(step)["checksums"]
        try:
            flat = self._checkpointer.load(step, abstract)
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

    def contents(self, step: int) -> dict[str, tuple[int, ...]]:
        """Returns {path: shape} of the arrays saved under `step`.

        Raises:
          Damaged: what is on disk does not tell.
        """
        self.wait()
        try:
            arrays = self._checkpointer.metadata(step).metadata
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

    def set_aside(self, damaged: Damaged) -> None:
        """Moves a damaged checkpoint out of the way, and says so.

        Raises:
          Damaged: it is another run's, where nothing may be moved.
        """
        if self._read_only:
            raise damaged
        self._checkpointer.close()
        processes.first_tells(lambda: self._move(damaged.step, damaged.reason))
        self._set_aside.append(damaged.step)
        self._open()

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

    @property
    def _aside(self) -> Path:
        return self._directory.parent / "checkpoints-damaged"

    def _move(self, step: int, reason: str) -> None:
        self._aside.mkdir(exist_ok=True)
        target, copies = self._aside / str(step), 1
        while target.exists():
            target = self._aside / f"{step}-{copies}"
            copies += 1
        (self._directory / str(step)).rename(target)
        print(
            f"the checkpoint of step {step} is damaged ({reason}); it is now "
            f"{target}",
            flush=True,
        )

    def _check_descriptions(self) -> list[int]:
        """Sets aside what Orbax would stumble over, or read wrongly.

        Returns:
          The steps of what is no longer there.

        Raises:
          Damaged: one of another run's, where nothing may be moved.
        """
        moved = []
        for folder in sorted(self._directory.glob("[0-9]*")):
            if not folder.name.isdigit():
                continue  # Not finished: Orbax sweeps it away.
            try:
                self._content(int(folder.name))
            except Damaged as damaged:
                if self._read_only:
                    raise
                self._move(damaged.step, damaged.reason)
                moved.append(damaged.step)
        return moved

    def _content(self, step: int) -> dict[str, Any]:
        try:
            return _described(self._directory / str(step))
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise Damaged(self._directory, step, reason) from error

    def _rank(self, metrics: dict[str, float]) -> tuple[float, int]:
        value = merit(self._metric, metrics[self._metric])
        return value if math.isfinite(value) else -math.inf, -metrics["step"]


class _EveryCall:
    """Saves whenever asked: the loop decides, not Orbax."""

    def should_save(self, step, previous_steps, *, context) -> bool:
        return True


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
