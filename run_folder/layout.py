"""The run folder: its file names, whose it is, one writer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core import paths
from core.atomic_files import write_text
from core.errors import UserError
from run_folder import identity as identity_lib
from run_folder.lease import Lease

CONFIG = "config.json"
DATA = "data.json"
FOLDS = "folds.csv"
METRICS = "metrics.jsonl"
TELEMETRY = "telemetry.jsonl"
CHECKPOINTS = "checkpoints"
INFERENCE = "inference.json"
ARTIFACTS = "artifacts.json"
REPORT = "report.html"
PLAN = "plan.html"
LOCK = ".lock"
LEASE = "owner.json"  # In a bucket, which has no locks.

# With this file in it, a checkpoint in a bucket is whole; Orbax writes it last.
# On a disk it gets its name when it is.
COMMITTED = "commit_success.txt"

FOLD = re.compile(r"fold-\d")

# Of a segmentation: pixels counted on each validation image.
MASK_COUNTS = "masks/val.npz"

# Of pretraining: originals, hidden, painted.
RECONSTRUCTIONS = "reconstructions.png"

# Of a generator: images of each evaluation; what was exported, and its scores.
GRIDS = "grids"
SAMPLES = "samples/manifest.json"
SAMPLE_SCORES = "samples/scores.json"

# Of a pretraining: what its encoder knows of the classes.
PROBE = "probe.json"

# Folders of predictions, which a run may have beside its checkpoints.
PREDICTION_FOLDERS = (
    "logits",
    "embeddings",
    "masks",
    "pairs",
    "probabilities",
    "samples",
)

# Those with a folder for each split (`samples`: for each class), and a file in
# it for each image.
FOLDERS_BY_SPLIT = ("masks", "probabilities", "samples")


def fold_folder(workdir: Path, fold: int) -> Path:
    """Returns where a run over all folds keeps the run of one fold."""
    return workdir / f"fold-{fold}"


def fold_folders(workdir: Path) -> list[Path]:
    """Returns the runs inside a run over all folds, in order; [] elsewhere."""
    found = (path for path in _entries(workdir) if FOLD.match(path.name))
    return sorted(found, key=lambda path: (len(path.name), path.name))


def image_file(folder: str, split: str, image_id: str, suffix: str) -> str:
    """Returns the name of an image's file, `<folder>/<split>/<id><suffix>`.

    An id that is in two splits begins with its own, which is left out. Those
    of new images never do: what they begin with is a folder.
    """
    if split == "val":
        image_id = image_id.removeprefix("val/")
    return f"{folder}/{split}/{image_id}{suffix}"


def logits_path(workdir: Path, split: str) -> Path:
    """Returns where a run keeps its logits for `split`."""
    return workdir / "logits" / f"{split}.npz"


def pairs_path(workdir: Path, split: str) -> Path:
    """Returns where the pairs of `val` or `test` are; see `pair_files`."""
    return workdir / "pairs" / f"{split}.npz"


def has_checkpoint(workdir: Path) -> bool:
    """Whether a run has got as far as its first checkpoint there."""
    return bool(committed_steps(workdir / CHECKPOINTS))


def committed_steps(folder: Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, also corrupt ones.

    Args:
      folder: `<run>/checkpoints`; may be missing.

    Raises:
      UserError: it cannot be read.
    """
    # A save that was killed leaves a name with more than the step's digits.
    found = [path for path in _entries(folder) if path.name.isdigit()]
    if paths.is_remote(folder):
        found = [path for path in found if (path / COMMITTED).exists()]
    return sorted(int(path.name) for path in found)


def _entries(folder: Path) -> list[Path]:
    """What a folder holds; never by a pattern, as its name may be one.

    Only what is missing is empty: a run that cannot be read now has begun.
    """
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if paths.is_remote(folder):  # Told by `paths.reaching`.
            raise
        raise UserError(
            f"cannot read the folder {folder}: {error.strerror or error}; see "
            "to the disk and the right to read there"
        ) from error


def read_config(workdir: Path) -> dict[str, Any] | None:
    """Returns the config of the run there, or of its first fold.

    None without a readable one.
    """
    for folder in (workdir, *fold_folders(workdir)[:1]):
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(config, dict):
            return config
    return None


def read_data(workdir: Path) -> dict[str, Any]:
    """Returns what `claim` keeps in `data.json`; {} before a checkpoint.

    Raises:
      UserError: the file cannot be read.
    """
    return _read(workdir / DATA) if has_checkpoint(workdir) else {}


def claim(
    workdir: Path,
    config: dict[str, Any],
    identity: dict[str, Any],
    on_lost: Callable[[UserError], None] | None = None,
) -> contextlib.AbstractContextManager[Any]:
    """Makes `workdir` the folder of a run with `config`, or resumes it.

    Until the first checkpoint there is nothing to resume, and the folder
    takes the config of this command.

    Args:
      workdir: the run folder.
      config: of this command, plain, kept in `config.json`.
      identity: of the data (classes, folds, rows), kept in `data.json`:
        under other folds, an image that was trained on might validate.
      on_lost: called in another thread when another run has taken the folder
        over, which only happens in a bucket; it is to end this run. Needed
        there.

    Returns:
      The lock, which ends when this context is closed. On a disk it ends with
      the process, too, however that dies; in a bucket a minute later.

    Raises:
      UserError: another process trains there, the folder belongs to a run
        with another config or data (what differs is named), or it cannot be
        written.
    """
    if fold_folders(workdir):
        raise UserError(
            f"{workdir} holds a run over all folds, whose logits this one's "
            "would replace; choose another --workdir"
        )
    held = _lock(workdir, on_lost)
    if not has_checkpoint(workdir):
        for name, content in ((CONFIG, config), (DATA, identity)):
            text = json.dumps(content, indent=2) + "\n"
            write_text(workdir / name, text)
        return held
    changed = identity_lib.differences(config, _read(workdir / CONFIG))
    if changed:
        raise UserError(
            f"{workdir} holds a run with another config "
            f"({'; '.join(changed)}); give the same fields to continue it, "
            "choose another --workdir, or delete the folder to start over"
        )
    earlier = _read(workdir / DATA)
    changed = [
        name
        for name in sorted(identity.keys() | earlier.keys())
        if identity.get(name) != earlier.get(name)
    ]
    if changed:
        raise UserError(
            f"{' and '.join(_IDENTITY.get(n, n) for n in changed)} are not "
            f"those that the run in {workdir} began with; restore the data, "
            "the folds file and the runs that it learns from, choose another "
            "--workdir, or delete the folder to start over"
        )
    return held


# Of a run's identity, for people.
_IDENTITY = {
    "classes": "the classes",
    "folds_hash": "the folds",
    "generated": "the images of data.generated",
    "init_from": "the weights of init_from",
    "pairs_hash": "the validation pairs",
    "rows_hash": "the labelled rows",
    "teachers": "the weights of distill_from",
}


def _lock(
    workdir: Path, on_lost: Callable[[UserError], None] | None
) -> contextlib.AbstractContextManager[Any]:
    if paths.is_remote(workdir):
        if on_lost is None:
            raise ValueError("a run in a bucket needs on_lost")
        return Lease(workdir / LEASE, on_lost)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        held = open(workdir / LOCK, "w")  # noqa: SIM115 (held by the caller)
    except OSError as error:
        raise UserError(
            f"cannot write the run folder {workdir}: {error.strerror}; choose "
            "another --workdir"
        ) from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UserError(
            f"another process is training in {workdir}; wait for it or choose "
            "another --workdir"
        ) from error
    return held


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {path} ({error}); restore it, or delete the folder "
            "to start over"
        ) from error
