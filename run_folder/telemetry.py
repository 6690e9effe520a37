"""What depends on the machine: `telemetry.jsonl`, written and read.

`metrics.jsonl` has no clock, so that a run that was stopped and continued
leaves the same bytes. Time, speed, the command and the machine are therefore
here. One JSON object per line, of `kind` "start" (a process began to train) or
"speed".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from run_folder import layout


@dataclass(frozen=True)
class Speed:
    """How fast a run trained, up to a step.

    Attributes:
      step: steps done, over all stages.
      epoch: epochs done, over all stages.
      seconds: since the process began to train.
      images_per_second: smoothed, without evaluations; None before two steps
        are logged.
      waiting: share of the time in which the device waited for images; None
        before it is known.
    """

    step: int
    epoch: float
    seconds: float
    images_per_second: float | None = None
    waiting: float | None = None


@dataclass(frozen=True)
class Telemetry:
    """All of it, in its order.

    Attributes:
      start: what the first process said of itself: `command`, `parameters`,
        `devices`, `packages` and the like.
      speeds: of all processes.
      seconds: that all processes trained, evaluations and compilation too.
      starts: how many processes there were, one after the other.
    """

    start: Mapping[str, Any]
    speeds: tuple[Speed, ...]
    seconds: float
    starts: int


def read(run: Path) -> Telemetry | None:
    """Returns what a run recorded, or the folds inside it together.

    None where nothing was. A line that is no record is passed over.
    """
    found = [
        one
        for folder in (run, *layout.fold_folders(run))
        if (one := _read(folder)) is not None
    ]
    if not found:
        return None
    return Telemetry(
        found[0].start,
        tuple(speed for one in found for speed in one.speeds),
        sum(one.seconds for one in found),
        sum(one.starts for one in found),
    )


def _read(folder: Path) -> Telemetry | None:
    try:
        text = (folder / layout.TELEMETRY).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    start, speeds, starts, seconds, before = {}, [], 0, 0.0, 0.0
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            kind = entry.pop("kind")
            if kind == "start":
                start = start or entry
                starts, before = starts + 1, seconds
            elif kind == "speed":
                speeds.append(Speed(**entry))
                seconds = before + float(entry["seconds"])
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    if not starts and not speeds:
        return None
    return Telemetry(start, tuple(speeds), seconds, max(starts, 1))
