"""Writes checkpoints: the latest, and the best by an evaluation's metric.

This and `reader` are the only files that use Orbax (its v1 API).
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from core.errors import UserError
from training.checkpointing import checksums
from training.checkpointing.reader import (
    ARRAYS,
    CheckpointReader,
    CorruptCheckpointError,
    flatten,
)
from training.multihost import comm, host_transfer

_policies = ocp.training.preservation_policies

# In the name of a checkpoint that Orbax has not committed.
_UNFINISHED = ".orbax-checkpoint-tmp"


class CheckpointManager(CheckpointReader):
    """The checkpoints of one run, newest and best kept, the rest deleted.

    A checkpoint holds a `TrainState` as a flat mapping of path to array, so
    it restores onto any mesh, and a small `history` (JSON), both with
    checksums. `save` returns as soon as the arrays are copied and their
    checksums computed; files are written in the background, to a temporary
    name that is renamed when complete. The primary process alone writes; with
    several processes, from copies in its own memory.

    The disk holds 1 + `keep_best` checkpoints, and one more during a save:
    each about three times the parameters (four or five with EMA), in float32.

    Args:
      directory: `<run>/checkpoints`.
      keep_best: how many of the best to keep besides the latest one.
    """

    def __init__(self, directory: Path, keep_best: int = 1):
        super().__init__(directory)
        self._keep_best = keep_best
        self._saving: Any = None  # Orbax's future of the last save.
        self._quarantined: list[int] = []  # Steps; in the primary alone.
        self._checkpointer: Any = None

        def begin() -> None:
            self._quarantined += self._quarantine_corrupt_metadata()
            self._open()

        comm.run_on_primary(begin)

    def _open(self) -> None:
        kept = _policies.AnyPreservationPolicy(
            [
                _policies.LatestN(1),
                _policies.BestN(
                    get_metric_fn=self._rank,
                    n=self._keep_best,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        with self._writing():
            context = ocp.Context()
            # `save` hands over copies: Orbax need not copy them again.
            context.memory_options.deepcopy_host_arrays = False
            # Else each replica writes a slice, cut by a program of its own:
            # hundreds to compile on eight devices.
            context.array_options.saving.use_replica_parallel = False
            self._checkpointer = ocp.training.Checkpointer(
                self._directory.absolute(),
                context=context,
                save_decision_policy=_EveryCall(),
                preservation_policy=kept,
                cleanup_tmp_directories=True,
            )

    def latest(self) -> int | None:
        """Returns the step of the newest checkpoint, None if there is none.

        Raises:
          UserError: there were some, but all of them are corrupt.
        """
        return comm.run_on_primary(self._latest)

    def save(
        self,
        step: int,
        state: Any,
        history: dict[str, Any],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Saves `state` under `step`, unless that step was saved before.

        Args:
          step: global step; the name of the checkpoint.
          state: a pytree of arrays.
          history: what else a resumed run must know, as JSON.
          metrics: of the evaluation at this step, with the `merit` by which
            the best is kept; None if there was none.

        Raises:
          UserError: the state holds a number that is not finite, or the disk
            cannot be written; earlier checkpoints are intact.
        """
        if comm.run_on_primary(lambda: self._is_saved(step)):
            return
        if metrics is not None:
            metrics = {**metrics, "step": step}
        one_process = jax.process_count() == 1
        # The next step overwrites the state's buffers (donation) while Orbax
        # may still be reading them, so Orbax gets a copy.
        state = flatten(_copy(state) if one_process else state)
        sums, infinite = checksums.checksum_arrays(state)
        if infinite:
            raise UserError(
                f"the training diverged by step {step}: {infinite[0]} is not "
                "finite; lower the stage's learning_rate or set its clip_norm "
                "to 1.0, in a new --workdir"
            )
        content = {
            "history": history,
            "metrics": metrics,
            "checksums": sums,
        }
        if not one_process:
            state = host_transfer.gather_to_primary(state)
        comm.run_on_primary(lambda: self._write(step, state, content))

    def quarantine(self, corrupt: CorruptCheckpointError) -> None:
        """Moves a corrupt checkpoint to `checkpoints-damaged/`."""

        def move() -> None:
            self.close()
            self._move(corrupt.step, corrupt.reason)
            self._quarantined.append(corrupt.step)
            self._open()

        comm.run_on_primary(move)

    def wait(self) -> None:
        """Blocks until all that `save` was given is on disk.

        Raises:
          UserError: it could not be written; earlier checkpoints are intact.
        """
        comm.run_on_primary(self._settle)

    def close(self) -> None:
        """Waits for the disk and closes Orbax; calls no collective.

        Raises:
          UserError: as `wait`.
        """
        if self._checkpointer is None:
            return
        try:
            self._settle()
        finally:
            self._close()

    # ---- In the primary -----------------------------------------------------

    def _latest(self) -> int | None:
        self._settle()
        newest = self._checkpointer.latest
        if newest is None and self._quarantined:
            raise UserError(
                f"every checkpoint in {self._directory} was damaged and is now "
                f"in {self._quarantine_folder}; restore one from a copy, or "
                "delete the run folder to start over"
            )
        return None if newest is None else newest.step

    def _is_saved(self, step: int) -> bool:
        self._settle()
        return any(c.step == step for c in self._checkpointer.checkpoints)

    def _write(self, step: int, state: dict, content: dict[str, Any]) -> None:
        # Orbax writes the metadata last: it must not change until then.
        metadata = copy.deepcopy(checksums.add_hash(content))
        with self._writing():
            self._saving = self._checkpointer.save_async(
                step,
                state,
                checkpointable_name=ARRAYS,
                metrics=content["metrics"],
                custom_metadata=metadata,
            )

    def _settle(self) -> None:
        with self._writing():
            saving, self._saving = self._saving, None
            if saving is not None:
                # Without this call a thread and three open files leak.
                saving.result()
            self._checkpointer.wait()

    def _close(self) -> None:
        try:
            with self._writing():
                self._checkpointer.close()
        finally:
            # An unfinished checkpoint is never read, but takes space.
            for half in self._directory.glob(f"*{_UNFINISHED}"):
                shutil.rmtree(half, ignore_errors=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns an error of the disk into one sentence."""
        try:
            yield
        except Exception as error:
            reason = _disk_error(error)
            if reason is None:
                raise
            raise UserError(
                f"cannot write a checkpoint in {self._directory}: {reason}; "
                "free some space or make it writable, and run the same "
                "command again to continue"
            ) from error

    @property
    def _quarantine_folder(self) -> Path:
        return self._directory.parent / "checkpoints-damaged"

    def _move(self, step: int, reason: str) -> None:
        target, copies = self._quarantine_folder / str(step), 1
        while target.exists():
            target = self._quarantine_folder / f"{step}-{copies}"
            copies += 1
        with self._writing():
            self._quarantine_folder.mkdir(exist_ok=True)
            (self._directory / str(step)).rename(target)
        print(
            f"the checkpoint of step {step} is damaged ({reason}); it is now "
            f"{target}",
            flush=True,
        )

    def _quarantine_corrupt_metadata(self) -> list[int]:
        """Quarantines checkpoints that Orbax would fail on, or misread.

        Returns:
          Their steps.
        """
        moved = []
        for step in self._steps():
            try:
                self._content(step)
            except CorruptCheckpointError as corrupt:
                self._move(corrupt.step, corrupt.reason)
                moved.append(corrupt.step)
        return moved


class _EveryCall:
    """Saves at every call: the training loop decides, not Orbax."""

    def should_save(self, step, previous_steps, *, context) -> bool:
        return True


def _disk_error(error: BaseException | None) -> str | None:
    """The system's message about the disk; None for any other error.

    TensorStore, which writes the arrays, raises ValueErrors with the errno in
    their text.
    """
    if error is None:
        return None
    if isinstance(error, OSError):
        return error.strerror or str(error)
    number = re.search(r"os_error_code='(\d+)'", str(error))
    if number is not None:
        return os.strerror(int(number[1]))
    return _disk_error(error.__cause__)


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)
