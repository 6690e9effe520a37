"""Time and peak memory of stacking at scale.

    python benchmarks/stacking_scale.py
    python benchmarks/stacking_scale.py --boosters lightgbm

Writes made-up logits of 12 models for 100,000 validation rows of 100 classes
(and 10,000 test rows) to a temporary folder, runs `python -m stacking` on
them in a process of its own, and prints how long it took, how much of that was
computing (other programs may be running), and the most memory it held.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from run_folder.predictions import Logits, write_logits

TEST_ROWS = 10_000


def write_runs(folder: Path, rows: int, classes: int, models: int) -> None:
    """Writes made-up runs whose models share what makes a row hard."""
    rng = np.random.default_rng(0)
    total = rows + TEST_ROWS
    # Classes as uneven as in real data: the largest 30 times the smallest.
    shares = np.geomspace(30, 1, classes)
    labels = rng.choice(classes, total, p=shares / shares.sum())
    shared = rng.standard_normal((total, classes), np.float32)
    shared[np.arange(total), labels] += 3.0
    ids = np.array([f"{i:07}" for i in range(total)])
    names = np.array([f"class {i}" for i in range(classes)])
    for model in range(models):
        noise = rng.standard_normal((total, classes), np.float32)
        logits = 1.5 * (shared + (0.6 + 0.05 * model) * noise)
        metadata = {
            "model": f"model{model:02}",
            "config_hash": str(model),
            "folds_hash": "made up",
            "tta_views": ["center"],
        }
        for split, part in (
            ("val", slice(0, rows)),
            ("test", slice(rows, total)),
        ):
            known = labels[part] if split == "val" else np.full(TEST_ROWS, -1)
            write_logits(
                folder / f"model{model:02}" / "logits" / f"{split}.npz",
                Logits(
                    ids[part],
                    logits[part],
                    known,
                    names,
                    np.full(len(known), -1),
                    metadata,
                ),
            )


def main() -> None:
    """Runs the measurement and prints one line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--models", type=int, default=12)
    parser.add_argument("--boosters", default="none")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        write_runs(runs, options.rows, options.classes, options.models)
        started = time.monotonic()
        subprocess.run(
            [
                *(sys.executable, "-m", "stacking"),
                *("--runs", f"{runs}/*"),
                *("--out", f"{folder}/stack"),
                *("--boosters", options.boosters),
            ],
            cwd=ROOT,
            check=True,
        )
        seconds = time.monotonic() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Kilobytes on Linux, of the largest child.
    peak = used.ru_maxrss / 2**20
    print(
        f"{options.rows:,} rows x {options.classes} classes x "
        f"{options.models} models, boosters {options.boosters}: "
        f"{seconds:.0f} s ({used.ru_utime + used.ru_stime:.0f} s of one "
        f"core), peak memory {peak:.2f} GiB"
    )


if __name__ == "__main__":
    main()
