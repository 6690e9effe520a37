"""Where else the entries of metrics.jsonl go, and what depends on the machine.

None of it is part of a run: a listener that cannot write falls silent, and
the training goes on.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any, Protocol

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
        try:
            self._log = MetricsLog(path)
        except UserError:  # Told where something of worth is written.
            return
        self._append({"kind": "start", **start})

    def record(self, entry: dict[str, Any]) -> None:
        """Appends an entry of `kind` "speed"."""
        if entry["kind"] == "speed":
            self._append(entry)

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
        with contextlib.suppress(UserError):
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
            with contextlib.suppress(UserError):  # Told by what is needed.
                run_report(self._workdir, told=told)

    def close(self) -> None:
        """Leaves the page as it is."""


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
