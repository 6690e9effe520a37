"""Seconds until `train.py` answers and has done a step; until predict.py has.

    python benchmarks/startup.py [--config configs/tinyvit.py] [--write]

Each in a process of its own: `python train.py --help`; a first start with empty
caches; and the same command again in another run folder, which finds its
compiled step in the persistent cache. A start ends when the first step stands
in metrics.jsonl, which is when the second one is under way; the run is then
killed. `--predict` trains for a moment on noise and starts predict.py on one
photo: until its answer is printed, with empty caches and again. In the page:
`--predict --config configs/miniconvnext.py:short --size 224 --write`.
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

import numpy as np
from PIL import Image

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


def short_run(folder: Path, config: str, size: int) -> None:
    """Trains for a moment on noise.

    Args:
      folder: for the photos, a cache, and the run, in `run`.
      config: of train.py.
      size: of the images.
    """
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 256, (256, 320, 3), np.uint8)
            photo = folder / f"photos/{name}/{number}.jpg"
            Image.fromarray(pixels).save(photo)
    subprocess.run(
        [
            *(sys.executable, "train.py", f"--config={config}"),
            f"--workdir={folder / 'run'}",
            f"--config.data.root={folder / 'photos'}",
            f"--config.cache_dir={folder / 'training'}",
            f"--config.image_size={size}",
            "--config.epochs=1",
            "--config.stages[0].batch_size=16",
        ],
        cwd=pairs.ROOT,
        stdout=subprocess.DEVNULL,
        check=True,
    )


def predict(folder: Path) -> float:
    """Predicts a photo; returns the wall seconds until its answer is printed.

    Args:
      folder: of `short_run`; its cache for predictions fills at the first call.
    """
    began = time.monotonic()
    process = subprocess.Popen(
        [
            *(sys.executable, "predict.py", f"--run={folder / 'run'}"),
            folder / "photos/cat/0.jpg",
        ],
        cwd=pairs.ROOT,
        env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache")},
        stdout=subprocess.PIPE,
        text=True,
    )
    answered = any("0.jpg" in line for line in process.stdout)
    took = time.monotonic() - began
    process.communicate()
    if process.returncode or not answered:
        raise RuntimeError(f"predict.py ended with {process.returncode}")
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
        predict=dict(action="store_true"),
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
    if options.predict:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            short_run(folder, options.config, options.size)
            works = [lambda: predict(folder)]
            add("`predict.py`, empty caches", 60, works)
            add("`predict.py`, second start", 5, works * options.rounds)
        text = pairs.table(("", "wall s", "processor s", "goal s"), rows)
        text += f"\n\n{options.config} at {options.size} px, one photo."
        machine = pairs.describe_machine("jax")
        pairs.publish("predicting", text, machine, options.write)
        return
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
