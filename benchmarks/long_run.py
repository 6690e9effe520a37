"""Memory, open files and threads of a training over 2,000 steps.

    python benchmarks/long_run.py

Trains the demo model on the digits with two loader processes, in small
batches, and reads /proc meanwhile: of the training process and of the largest
loader, at every evaluation. Exit code 1 if anything grew over the second half
of the run by more than noise.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINES = 10  # of the table
ALLOWED_MEGABYTES = 24.0
ALLOWED_COUNT = 2


@dataclasses.dataclass(frozen=True)
class Sample:
    """What one moment of the run looked like.

    Attributes:
      step: last one in metrics.jsonl.
      main: resident memory of the training process that is its own, MB.
      loader: the same of the largest loader process, MB.
      files: open files of the training process.
      threads: of the training process.
    """

    step: int
    main: float
    loader: float
    files: int
    threads: int


def main() -> int:
    """Runs the training and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    print("| step | training, MB | loader, MB | open files | threads |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    samples = []
    with tempfile.TemporaryDirectory() as folder:
        for line in watch(Path(folder), options.steps, options.workers):
            samples.append(line)
            print(
                f"| {line.step:,} | {line.main:.0f} | {line.loader:.0f} | "
                f"{line.files} | {line.threads} |",
                flush=True,
            )
    grown = list(growth(samples))
    print("; ".join(grown) or "nothing grew over the second half")
    return bool(grown)


def watch(folder: Path, steps: int, workers: int) -> Iterator[Sample]:
    """Trains for `steps` steps; yields `LINES` samples.

    Raises:
      RuntimeError: the training failed.
    """
    batch, epoch = 16, 1149 // 16
    every = steps // LINES / epoch
    process = subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "train.py"),
            f"--config={ROOT}/configs/miniconvnext.py:demo",
            f"--workdir={folder / 'run'}",
            f"--config.epochs={2 * steps / epoch}",
            f"--config.eval.every_epochs={every}",
            "--config.log_every_steps=10",
            f"--config.workers={workers}",
            *(f"--config.stages[{i}].batch_size={batch}" for i in range(2)),
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    log, taken = folder / "run/metrics.jsonl", 0
    try:
        while process.poll() is None and taken < LINES:
            step = (
                10 * log.read_bytes().count(b'"train"') if log.exists() else 0
            )
            if step >= (taken + 1) * steps // LINES:
                taken += 1
                yield sample(step, process.pid)
            time.sleep(0.05)
        if process.poll() not in (None, 0):
            raise RuntimeError(f"the training ended with {process.returncode}")
    finally:
        process.kill()
        process.wait()


def sample(step: int, process: int) -> Sample:
    """Reads /proc of a training process and its children."""
    # A loader is a child of the thread that started it.
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    listed = " ".join(task.read_text() for task in tasks)
    status = Path(f"/proc/{process}/status").read_text()
    return Sample(
        step,
        memory(process),
        max((memory(int(child)) for child in listed.split()), default=0.0),
        len(os.listdir(f"/proc/{process}/fd")),
        int(status.partition("Threads:")[2].split()[0]),
    )


def memory(process: int) -> float:
    """Resident megabytes that are not pages of a file."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0]) / 1024


def growth(samples: list[Sample]) -> Iterator[str]:
    """Yields a sentence for what grew from the middle of the run on."""
    middle = samples[len(samples) // 2 :]
    third = max(1, len(middle) // 3)
    for name in ("main", "loader", "files", "threads"):
        values = [getattr(line, name) for line in middle]
        before, after = min(values[:third]), min(values[-third:])
        counted = name in ("files", "threads")
        allowed = ALLOWED_COUNT if counted else ALLOWED_MEGABYTES
        if after - before > allowed:
            yield f"{name} grew from {before:.0f} to {after:.0f}"


if __name__ == "__main__":
    sys.exit(main())
