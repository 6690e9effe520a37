"""Checkpoints on disk: the latest, and the best by an evaluation's metric.

With `stored`, which reads them, the only file that knows Orbax (its v1 API).
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

# How Orbax names what is not finished.
_UNFINISHED = ".orbax-checkpoint-tmp"


class CheckpointManager(CheckpointReader):
    """The checkpoints of one run, newest and best kept, the rest deleted.

    A checkpoint holds a `TrainState` as a flat mapping of path to array, so
    it restores on any layout of devices, and a small `history` (JSON), both
    with checksums. Saving returns as soon as the arrays are copied and summed
    up; disk is written meanwhile, to a temporary name, renamed when whole.
    Process 0 alone writes, with several from copies in its own memory.

    So the disk holds 1 + `keep_best` checkpoints, and one more while it is
    being written: each about three times the parameters (four or five with
    EMA), in float32.

    Args:
      directory: `<run>/checkpoints`.
      keep_best: how many of the best to keep besides the latest one.
    """

    def __init__(self, directory: Path, keep_best: int = 1):
        super().__init__(directory)
        self._keep_best = keep_best
        self._saving: Any = None  # Orbax's answer to the last save.
        self._quarantined: list[int] = []  # In process 0, as all of this.
        self._checkpointer: Any = None

        def begin() -> None:
            self._quarantined += self._check_descriptions()
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
            # What is copied into this memory is Orbax's already.
            context.memory_options.deepcopy_host_arrays = False
            # Else every copy of an array gives a part, cut out by a program
            # of its own: hundreds to compile, for eight devices.
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
          UserError: there were some, but every one is damaged.
        """
        return comm.run_on_primary(self._latest)

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
          metrics: of the evaluation at this step, with the `merit` by which
            the best is kept; None if there was none.

        Raises:
          UserError: the state holds a number that is not finite, or the disk
            cannot be written; what was there before is intact.
        """
        if comm.run_on_primary(lambda: self._is_there(step)):
            return
        if metrics is not None:
            metrics = {**metrics, "step": step}
        alone = jax.process_count() == 1
        # The next step overwrites the state's buffers (donation) while Orbax
        # may still be reading them, so it gets buffers of its own.
        state = flatten(_copy(state) if alone else state)
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
        if not alone:
            state = host_transfer.gather_to_primary(state)
        comm.run_on_primary(lambda: self._write(step, state, content))

    def quarantine(self, damaged: CorruptCheckpointError) -> None:
        """Moves a damaged checkpoint out of the way, and says so."""

        def replace() -> None:
            self.close()
            self._move(damaged.step, damaged.reason)
            self._quarantined.append(damaged.step)
            self._open()

        comm.run_on_primary(replace)

    def wait(self) -> None:
        """Blocks until everything handed to `save` is on disk.

        Raises:
          UserError: it could not be written; what was there before is intact.
        """
        comm.run_on_primary(self._settle)

    def close(self) -> None:
        """Waits for the disk and gives up the folder; asks no other process.

        Raises:
          UserError: as `wait`.
        """
        if self._checkpointer is None:
            return
        try:
            self._settle()
        finally:
            self._close()

    # ---- In process 0 -------------------------------------------------------

    def _latest(self) -> int | None:
        self._settle()
        newest = self._checkpointer.latest
        if newest is None and self._quarantined:
            raise UserError(
                f"every checkpoint in {self._directory} was damaged and is now "
                f"in {self._aside}; restore one from a copy, or delete the run "
                "folder to start over"
            )
        return None if newest is None else newest.step

    def _is_there(self, step: int) -> bool:
        self._settle()
        return any(c.step == step for c in self._checkpointer.checkpoints)

    def _write(self, step: int, state: dict, content: dict[str, Any]) -> None:
        # Orbax writes it last: nobody may change it until then.
        sealed = copy.deepcopy(checksums.add_hash(content))
        with self._writing():
            self._saving = self._checkpointer.save_async(
                step,
                state,
                checkpointable_name=ARRAYS,
                metrics=content["metrics"],
                custom_metadata=sealed,
            )

    def _settle(self) -> None:
        with self._writing():
            saving, self._saving = self._saving, None
            if saving is not None:
                # Unless it is asked, a thread and three open files stay.
                saving.result()
            self._checkpointer.wait()

    def _close(self) -> None:
        try:
            with self._writing():
                self._checkpointer.close()
        finally:
            # What could not be finished never counts, but fills the disk.
            for half in self._directory.glob(f"*{_UNFINISHED}"):
                shutil.rmtree(half, ignore_errors=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Tells of a disk that cannot be written in one sentence."""
        try:
            yield
        except Exception as error:
            reason = _fault_of_disk(error)
            if reason is None:
                raise
            raise UserError(
                f"cannot write a checkpoint in {self._directory}: {reason}; "
                "free some space or make it writable, and run the same "
                "command again to continue"
            ) from error

    @property
    def _aside(self) -> Path:
        return self._directory.parent / "checkpoints-damaged"

    def _move(self, step: int, reason: str) -> None:
        target, copies = self._aside / str(step), 1
        while target.exists():
            target = self._aside / f"{step}-{copies}"
            copies += 1
        with self._writing():
            self._aside.mkdir(exist_ok=True)
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
        """
        moved = []
        for step in self._steps():
            try:
                self._content(step)
            except CorruptCheckpointError as damaged:
                self._move(damaged.step, damaged.reason)
                moved.append(damaged.step)
        return moved


class _EveryCall:
    """Saves whenever asked: the loop decides, not Orbax."""

    def should_save(self, step, previous_steps, *, context) -> bool:
        return True


def _fault_of_disk(error: BaseException | None) -> str | None:
    """What the system says of the disk; None if `error` is about another thing.

    tensorstore, which writes the arrays, raises ValueErrors, with the
    system's number in their text.
    """
    if error is None:
        return None
    if isinstance(error, OSError):
        return error.strerror or str(error)
    number = re.search(r"os_error_code='(\d+)'", str(error))
    if number is not None:
        return os.strerror(int(number[1]))
    return _fault_of_disk(error.__cause__)


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)
