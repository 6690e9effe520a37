"""metrics.jsonl in the programs in which people already look: off by default.

Both are fed by the recorder. What a run has logged there is never read back,
so a run that is continued adds to what is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core import paths
from core.atomic_files import cannot_write
from core.errors import UserError
from core.event_file import EventFile

# Where, and what else, a value is.
_PLACE = ("kind", "step", "stage", "best")


class TensorBoard:
    """Event files for TensorBoard, without TensorFlow.

    Args:
      workdir: the run folder; the files are in `tensorboard` in it.
      first_step: from which on earlier files no longer count.

    Raises:
      UserError: the folder is in a bucket, or cannot be written.
    """

    def __init__(self, workdir: Path, first_step: int):
        if paths.is_remote(workdir):
            raise UserError(
                f"--tensorboard writes to a disk, and {workdir} is in a "
                "bucket; leave it out, or choose another --workdir"
            )
        folder = workdir / "tensorboard"
        purge = first_step + 1 if first_step else None
        try:
            self._file = EventFile(folder, purge)
        except OSError as error:
            raise cannot_write(folder, error) from error

    def record(self, entry: dict[str, Any]) -> None:
        """Logs the values of an entry as scalars."""
        with contextlib.suppress(OSError):  # A full disk stops other things.
            self._file.scalars(entry["step"], dict(scalars(entry)))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class WeightsAndBiases:
    """A run of Weights & Biases.

    With WANDB_MODE=offline nothing leaves the machine: `wandb sync` sends what
    is in the run folder's `wandb` later.

    Args:
      workdir: the run folder.
      project: of the user's.
      config: of the run, plain.

    Raises:
      UserError: wandb is not installed, the folder is in a bucket, or wandb
        refuses to begin.
    """

    def __init__(self, workdir: Path, project: str, config: dict[str, Any]):
        if paths.is_remote(workdir):
            raise UserError(
                f"--wandb writes to a disk, and {workdir} is in a bucket; "
                "leave it out, or choose another --workdir"
            )
        import wandb  # The command line has seen that it is there.

        where = os.path.abspath(workdir)
        try:
            self._run = wandb.init(
                project=project,
                name=workdir.name,
                dir=where,
                config=config,
                # The same run when it is continued.
                id=hashlib.sha256(where.encode()).hexdigest()[:16],
                resume="allow",
                settings=wandb.Settings(
                    console="off", silent=True, disable_git=True
                ),
            )
        except (wandb.Error, OSError) as error:
            raise UserError(
                f"Weights & Biases does not begin ({error}); log in with "
                "`wandb login`, set WANDB_MODE=offline, or leave --wandb out"
            ) from error
        self._run.define_metric("*", step_metric="step")

    def record(self, entry: dict[str, Any]) -> None:
        """Logs the values of an entry."""
        # wandb's own step may not go back, ours does after a divergence.
        self._run.log({"step": entry["step"], **dict(scalars(entry))})

    def close(self) -> None:
        """Finishes the run."""
        self._run.finish()


def scalars(entry: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields (name, value) of an entry, such as ("train/loss", 0.5)."""
    for name, value in entry.items():
        if name in _PLACE or value is None or not math.isfinite(value):
            continue
        yield f"{entry['kind']}/{name.removeprefix('val_')}", float(value)
