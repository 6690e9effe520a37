"""Seconds until `train.py` answers, and until its first step is done.

    python benchmarks/startup.py [--config configs/tinyvit.py] [--write]

Three things, each in a process of its own: `python train.py --help`; a first
start with empty caches; and the same command again in another run folder,
which finds its compiled step in the persistent cache. A start ends when the
first step stands in metrics.jsonl, which is when the second one is under way;
the run is then killed.
Processor time includes all threads; on a busy machine it is the one to read.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import pairs

LONGEST_START = 900  # seconds


def processor_seconds() -> float:
    """Returns what the child processes that have ended took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def ask_for_help() -> None:
    """Runs `python train.py --help` to its end."""
    subprocess.run(
        [sys.executable, "train.py", "--help"],
        cwd=pairs.ROOT,
        stdout=subprocess.DEVNULL,
        check=True,
    )


def start(folder: Path, run: str, flags: list[str]) -> float:
    """Starts a training; returns the wall seconds until its first step.

    Args:
      folder: keeps caches and run folders.
      run: name of the run folder.
      flags: for train.py.

    Raises:
      RuntimeError: it ended, or was too slow, before the first step.
    """
    workdir = folder / run
    log = folder / f"{run}.log"
    began = time.monotonic()
    with open(log, "w") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "train.py", *flags),
                f"--workdir={workdir}",
                f"--config.cache_dir={folder / 'cache'}",
                "--config.log_every_steps=1",
            ],
            cwd=pairs.ROOT,
            env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache")},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        metrics = workdir / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            late = time.monotonic() - began > LONGEST_START
            if late or process.poll() is not None:
                process.kill()
                raise RuntimeError(f"no first step:\n{log.read_text()}")
            time.sleep(0.02)
        took = time.monotonic() - began
        process.send_signal(signal.SIGKILL)
        process.wait()
    return took


def measure(work) -> tuple[float, float]:
    """Returns wall and processor seconds; `work` may return its own wall."""
    before, began = processor_seconds(), time.monotonic()
    wall = work()
    if wall is None:
        wall = time.monotonic() - began
    return wall, processor_seconds() - before


def main() -> None:
    """Prints the table."""
    options = pairs.parse(
        __doc__,
        rounds=3,
        config=dict(default="configs/tinyvit.py"),
        size=dict(type=int, default=64),
    )
    flags = [
        f"--config={options.config}",
        f"--config.image_size={options.size}",
    ]
    rows = []

    def add(name: str, goal: float, works) -> None:
        wall, processor = zip(*map(measure, works), strict=True)
        rows.append(
            (
                name,
                pairs.Sample(wall).describe(),
                pairs.Sample(processor).describe(),
                f"{goal:g}",
            )
        )
        print(*rows[-1], sep=" | ", flush=True)

    rounds = range(options.rounds)
    add("`train.py --help`", 2, [ask_for_help for _ in rounds])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        add(
            "first step, empty caches",
            60,
            [lambda: start(folder, "first", flags)],
        )
        add(
            "first step, second start",
            10,
            [
                lambda number=number: start(folder, f"run{number}", flags)
                for number in rounds
            ],
        )
    text = pairs.table(("", "wall s", "processor s", "goal s"), rows)
    text += f"\n\n{options.config} at {options.size} px, on the digits."
    pairs.publish("startup", text, pairs.describe_machine("jax"), options.write)


if __name__ == "__main__":
    main()
