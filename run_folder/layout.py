"""The run folder: whose it is, and that one process at a time writes it."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import IO, Any

from ml_collections import ConfigDict

from configs import loading
from core.atomic_files import write_text
from core.errors import UserError
from training import config as config_lib


class InUse(UserError):
    """Another process has the folder."""


def has_checkpoint(workdir: Path) -> bool:
    """Whether a run has got as far as its first checkpoint there."""
    # A save that was killed leaves a name with more than the step's digits.
    names = (path.name for path in (workdir / "checkpoints").glob("[0-9]*"))
    return any(name.isdigit() for name in names)


def remembered(workdir: Path, name: str) -> Any:
    """Returns what the run there keeps under `name` in `data.json`, if any.

    Raises:
      UserError: the file cannot be read.
    """
    if not has_checkpoint(workdir):
        return None
    return _read(workdir / "data.json").get(name)


def claim(workdir: Path, config: ConfigDict, identity: dict[str, object]) -> IO:
    """Makes `workdir` the folder of a run with `config`, or goes on with it.

    Until the first checkpoint there is nothing to go on with, and the folder
    takes the config of this command.

    Args:
      workdir: the run folder.
      config: of this command, kept in `config.json`.
      identity: what the run is about (classes, folds, rows), kept in
        `data.json`: under other folds, an image that was trained on might
        validate.

    Returns:
      The open lock file. Keep it: the lock ends when it is closed, or when
      the process dies in whatever way.

    Raises:
      UserError: another process trains there, the folder belongs to a run
        with another config or data (what differs is named), or it cannot be
        written.
    """
    if any(workdir.glob("fold-[0-9]*")):
        raise UserError(
            f"{workdir} holds a run over all folds, whose logits this one's "
            "would replace; choose another --workdir"
        )
    held = lock(workdir / ".lock", workdir)
    kept = {"config.json": loading.plain(config), "data.json": identity}
    if not has_checkpoint(workdir):
        for name, content in kept.items():
            text = json.dumps(content, indent=2) + "\n"
            write_text(workdir / name, text)
        return held
    changed = config_lib.differences(config, _read(workdir / "config.json"))
    if changed:
        raise UserError(
            f"{workdir} holds a run with another config "
            f"({'; '.join(changed)}); give the same fields to continue it, "
            "choose another --workdir, or delete the folder to start over"
        )
    earlier = _read(workdir / "data.json")
    changed = [name for name in identity if identity[name] != earlier.get(name)]
    if changed:
        raise UserError(
            f"{' and '.join(changed)} of the data are not those that the run "
            f"in {workdir} began with; restore the data and the folds file, "
            "choose another --workdir, or delete the folder to start over"
        )
    return held


def lock(path: Path, workdir: Path) -> IO:
    """Takes the lock file `path`, which stands for `workdir`.

    Returns:
      The open file, as `claim`.

    Raises:
      InUse: another process holds it.
      UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = open(path, "w")  # noqa: SIM115 (held by the caller)
    except OSError as error:
        raise UserError(
            f"cannot write the run folder {workdir}: {error.strerror}; choose "
            "another --workdir"
        ) from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InUse(
            f"another process is training in {workdir}; wait for it or choose "
            "another --workdir"
        ) from error
    return held


def _read(path: Path) -> dict[str, object]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {path} ({error}); restore it, or delete the folder "
            "to start over"
        ) from error
