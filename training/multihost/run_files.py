"""Which files of a run folder are mirrored to a bucket."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from run_folder import layout

# The files of a run, over one fold or all: no lock, no unfinished file, no
# quarantined checkpoint, no other run in a subfolder.
RUN_FILE = re.compile(
    r"(fold-\d+/)?(checkpoints/\d+/.+|"
    rf"(({'|'.join(layout.PREDICTION_FOLDERS)})/)?[^./][^/]*)"
)
CHECKPOINT = re.compile(r"((?:fold-\d+/)?checkpoints)/(\d+)/")

# Path -> [size, mtime in ns].
Files = dict[str, list[int]]


def list_files(folder: Path) -> Files:
    """Returns the files of the run in `folder`."""
    found = {}
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            relative = path.relative_to(folder).as_posix()
            if RUN_FILE.fullmatch(relative):
                with contextlib.suppress(FileNotFoundError):
                    about = path.stat()
                    found[relative] = [about.st_size, about.st_mtime_ns]
    return found


def progress(names: Iterable[str]) -> int:
    """Returns the step of the newest checkpoint, summed over folds; or 0."""
    newest: dict[str, int] = {}
    for found in filter(None, map(CHECKPOINT.match, names)):
        newest[found[1]] = max(newest.get(found[1], 0), int(found[2]))
    return sum(newest.values())


def checkpoints(found: Files) -> Files:
    """Returns the files of checkpoints."""
    return {name: found[name] for name in found if CHECKPOINT.match(name)}


def paths_to_delete(gone: Iterable[str], here: Iterable[str]) -> set[str]:
    """Returns paths to delete: whole checkpoints in place of their files."""
    kept = {found[0] for found in filter(None, map(CHECKPOINT.match, here))}
    names = set()
    for name in gone:
        found = CHECKPOINT.match(name)
        whole = found is not None and found[0] not in kept
        names.add(found[0].rstrip("/") if whole else name)
    return names
