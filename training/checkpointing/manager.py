"""Writes checkpoints: the latest, and the best by an evaluation's metric.

This, `reader` and `orbax_paths` are the only files that use Orbax (v1 API).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import jax
import jax.numpy as jnp
from etils import epath
from orbax.checkpoint import v1 as ocp

from core import paths
from core.errors import UserError
from run_folder import layout
from training.checkpointing import checksums, orbax_paths
from training.checkpointing.reader import (
    ARRAYS,
    CheckpointReader,
    CorruptCheckpointError,
    flatten,
    system_error,
)
from training.multihost import comm

# In the name of a checkpoint on a disk that is not whole: being written, or
# being deleted.
_UNFINISHED = ".orbax-checkpoint-tmp"


class CheckpointManager(CheckpointReader):
    """The checkpoints of one run, newest and best kept, the rest deleted.

    A checkpoint holds a `TrainState` as a flat mapping of path to array, so
    it restores onto any mesh, and a small `history` (JSON), both with
    checksums. `save` returns as soon as the arrays are copied and their
    checksums computed. Every process writes its own shards in the background;
    when all have, the primary commits: by a rename on a disk, by a last file
    in a bucket. The primary alone deletes.

    There are 1 + `keep_best` checkpoints, and one more from each save to the
    next, which deletes it: each about three times the parameters (four or five
    with EMA), in float32.

    Args:
      directory: `<run>/checkpoints`, the same in all processes.
      keep_best: how many of the best to keep besides the latest one.
    """

    def __init__(self, directory: Path, keep_best: int = 1):
        super().__init__(directory)
        self._keep_best = keep_best
        self._saving: Any = None  # Orbax's future of the last save.

        def begin() -> None:
            with self._writing():
                self._remove_unfinished()
            for step in self._steps():
                try:
                    self._content(step)
                except CorruptCheckpointError as corrupt:
                    self._move(corrupt)
            with self._writing():
                self._remove_old()

        comm.run_on_primary(begin)

    def latest(self) -> int | None:
        """Returns the step of the newest checkpoint, None if there is none.

        Raises:
          UserError: there were some, but all of them are corrupt.
        """
        self._settle()
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
          history: what else a resumed run must know, as JSON; the primary's
            is saved.
          metrics: of the evaluation at this step, with the `merit` by which
            the best is kept; None if there was none.

        Raises:
          UserError: the state holds a number that is not finite, or the disk
            cannot be written; earlier checkpoints are intact.
        """
        if step in self.steps():
            return
        if metrics is not None:
            metrics = {**metrics, "step": step}
        # The next step overwrites the state's buffers (donation) while Orbax
        # may still be reading them, so Orbax gets a copy.
        state = flatten(_copy(state))
        sums, infinite = checksums.checksum_arrays(state)
        if infinite:
            raise UserError(
                f"the training diverged by step {step}: {infinite[0]} is not "
                "finite; lower the stage's learning_rate or set its clip_norm "
                "to 1.0, in a new --workdir"
            )
        content = {"history": history, "metrics": metrics, "checksums": sums}
        # Orbax writes the metadata last: it must not change until then.
        metadata = copy.deepcopy(checksums.add_hash(content))
        with self._writing(), orbax_paths.context(self._directory):
            self._saving = ocp.save_async(
                self._directory / str(step),
                state,
                checkpointable_name=ARRAYS,
                custom_metadata=metadata,
            )

    def quarantine(self, corrupt: CorruptCheckpointError) -> None:
        """Moves a corrupt checkpoint to `checkpoints-damaged/`."""
        self._settle()
        comm.run_on_primary(lambda: self._move(corrupt))

    def wait(self) -> None:
        """Blocks until all that `save` was given is on disk.

        Raises:
          UserError: it could not be written; earlier checkpoints are intact.
        """
        self._settle()

    def close(self) -> None:
        """Waits as `wait`, and removes what a failed save has left.

        Raises:
          UserError: as `wait`.
        """
        try:
            self._settle()
        finally:
            if comm.is_primary():
                with contextlib.suppress(Exception):
                    self._remove_unfinished()

    def _settle(self) -> None:
        saving, self._saving = self._saving, None
        if saving is None:
            return
        with self._writing():
            saving.result()  # Returns when all processes have written.
            if comm.is_primary():
                self._remove_old()

    # ---- In the primary -----------------------------------------------------

    def _latest(self) -> int | None:
        steps = self._steps()
        # Also those that an earlier process has moved.
        damaged = self._quarantine_folder
        if not steps and damaged.exists() and any(damaged.iterdir()):
            raise UserError(
                f"every checkpoint in {self._directory} was damaged and is now "
                f"in {damaged}; restore one from a copy, or "
                "delete the run folder to start over"
            )
        return max(steps, default=None)

    def _remove_old(self) -> None:
        """Deletes all but the latest and the best.

        What cannot be read now stays: it may be the best.
        """
        steps, ranks = self._steps(), self._ranks(UserError)
        evaluated = [step for step, rank in ranks.items() if rank]
        best = sorted(evaluated, key=ranks.get, reverse=True)[: self._keep_best]
        for step in {*steps[:-1]} & ranks.keys() - {*best}:
            folder = self._directory / str(step)
            # Killed in between, it is no checkpoint any more.
            if paths.is_remote(folder):
                (folder / layout.COMMITTED).unlink()
            else:
                folder = folder.rename(f"{folder}{_UNFINISHED}")
            epath.Path(folder).rmtree()

    def _remove_unfinished(self) -> None:
        """Removes what was killed: it is never read, but takes space."""
        if not self._directory.exists():
            return
        whole = {str(step) for step in self._steps()}
        for path in self._directory.iterdir():
            # Nothing else there is ours, such as a copy that somebody made.
            uncommitted = (
                paths.is_remote(path)
                and path.name.isdigit()
                and path.name not in whole
            )
            if _UNFINISHED in path.name or uncommitted:
                epath.Path(path).rmtree(missing_ok=True)

    @property
    def _quarantine_folder(self) -> Path:
        return self._directory.parent / "checkpoints-damaged"

    def _move(self, corrupt: CorruptCheckpointError) -> None:
        step = corrupt.step
        target, copies = self._quarantine_folder / str(step), 1
        while target.exists():
            target = self._quarantine_folder / f"{step}-{copies}"
            copies += 1
        source = self._directory / str(step)
        with self._writing():
            if paths.is_remote(source):
                # Objects have no rename. Killed before the copy is whole, it
                # is still a checkpoint, and is found damaged again.
                files, _ = fsspec.core.url_to_fs(str(source))
                files.copy(str(source), str(target), recursive=True)
                (source / layout.COMMITTED).unlink()
                source.rmtree()
            else:
                target.parent.mkdir(exist_ok=True)
                source.rename(target)
        print(
            f"the checkpoint of step {step} is damaged ({corrupt.reason}); it "
            f"is now {target}",
            flush=True,
        )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns an error of the disk into one sentence."""
        try:
            yield
        except Exception as error:
            failed = system_error(error)
            if failed is None or paths.is_remote(self._directory):
                raise
            raise UserError(
                f"cannot write a checkpoint in {self._directory}: "
                f"{failed.strerror or failed}; free some space or make it "
                "writable, and run the same command again to continue"
            ) from error


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)
