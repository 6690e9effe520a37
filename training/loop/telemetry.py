"""Where else the entries of metrics.jsonl go, and what depends on the machine.

None of it is part of a run: a listener that cannot write falls silent, and
the training goes on.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from core import paths
from core.errors import UserError
from core.hardware import usable_cores
from reports.run import run_report
from training.loop.metrics_log import MetricsLog

# Whose versions change numbers or speed.
_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "pillow",
)


class Listener(Protocol):
    """Hears what a run records."""

    def record(self, entry: dict[str, Any]) -> None:
        """Takes an entry of metrics.jsonl, or one of `kind` "speed"."""

    def close(self) -> None:
        """Finishes what was written."""


class TelemetryFile:
    """`telemetry.jsonl`: time, speed, the command and the machine.

    Args:
      path: of the file; made if absent, else appended to.
      start: what this process says of itself, as JSON.
    """

    def __init__(self, path: Path, start: dict[str, Any]):
        self._log: MetricsLog | None = None
        with _silently():
            self._log = MetricsLog(path)
        self._append({"kind": "start", **start})

    def record(self, entry: dict[str, Any]) -> None:
        """Appends an entry of `kind` "speed"; saves at an evaluation."""
        if entry["kind"] == "speed":
            self._append(entry)
        elif entry["kind"] == "eval" and self._log is not None:
            with _silently():
                self._log.sync()

    def _append(self, entry: dict[str, Any]) -> None:
        if self._log is None:
            return
        try:
            self._log.append(json.dumps(entry).encode() + b"\n")
        except UserError:  # A full disk stops what is needed, not this.
            self._log.close()
            self._log = None

    def close(self) -> None:
        """Closes the file."""
        if self._log is None:
            return
        with _silently():
            self._log.sync()
        self._log.close()
        self._log = None


class ReportPage:
    """`report.html`, written anew at each evaluation while a run trains.

    Args:
      workdir: the run folder.
    """

    def __init__(self, workdir: Path):
        self._workdir = workdir

    def record(self, entry: dict[str, Any]) -> None:
        """Writes the page after an evaluation."""
        if entry["kind"] == "eval":
            told = f"It still trains; this was step {entry['step']:,}."
            with _silently():
                run_report(self._workdir, told=told)

    def close(self) -> None:
        """Leaves the page as it is."""


@contextlib.contextmanager
def _silently() -> Iterator[None]:
    """Passes over a disk or a bucket that cannot be written.

    The same fault is reported when a checkpoint or a log is written.
    """
    try:
        yield
    except UserError:
        pass
    except Exception as error:
        if not paths.is_unreachable(error):
            raise


def environment() -> dict[str, Any]:
    """Returns what numbers or speed may depend on, as JSON."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": usable_cores(),
        "packages": versions,
    }
