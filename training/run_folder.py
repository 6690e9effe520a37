"""The run folder: whose it is, and that one process at a time writes it."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import IO

from ml_collections import ConfigDict

from configs import loading
from errors import UserError
from files import write_text
from training import config as config_lib


def claim(workdir: Path, config: ConfigDict) -> IO:
    """Makes `workdir` the folder of a run with `config`, or goes on with it.

    Writes `config.json` when the folder is new.

    Returns:
      The open lock file. Keep it: the lock ends when it is closed, or when
      the process dies in whatever way.

    Raises:
      UserError: another process trains there, the folder belongs to a run
        with another config (the fields that differ are named), or it cannot
        be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = open(workdir / ".lock", "w")  # noqa: SIM115 (held by the caller)
    except OSError as error:
        raise UserError(
            f"cannot write the run folder {workdir}: {error.strerror}; choose "
            "another --workdir"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UserError(
            f"another process is training in {workdir}; wait for it or choose "
            "another --workdir"
        ) from error
    path = workdir / "config.json"
    if not path.exists():
        write_text(path, json.dumps(loading.plain(config), indent=2) + "\n")
        return lock
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}); restore it or choose another "
            "--workdir"
        ) from error
    changed = config_lib.differences(config, earlier)
    if changed:
        raise UserError(
            f"{workdir} holds a run with another config "
            f"({'; '.join(changed)}); choose another --workdir, or give the "
            "same fields to continue it"
        )
    return lock
