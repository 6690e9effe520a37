"""Milliseconds of a PxK batch's rows, by the number of pictures.

    python benchmarks/pk_sampler.py [--write]

Only the rows: no picture is read. The plan of an epoch is drawn with its first
batch. A quarter of the identities has one picture, the others up to 15. CPU
time, one core.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import pairs
from input_pipeline.pk_sampler import PKSampler

COUNTS = (10_000, 100_000, 1_000_000)
BATCHES = ((20, 4), (64, 4), (32, 16))  # P identities, K pictures
MEASURED = 200


def make_labels(count: int) -> np.ndarray:
    """Labels of pictures, of which few share an identity: int [count]."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 16, count)
    sizes[rng.random(count) < 0.25] = 1
    return rng.permutation(np.repeat(np.arange(count), sizes)[:count])


def measure(labels: np.ndarray, p: int, k: int) -> tuple[float, float]:
    """Returns seconds to start and draw a first batch, and per batch."""
    start = time.process_time()
    sampler = PKSampler(np.arange(len(labels)), labels, 0, p, k)
    sampler.row(0)
    first = time.process_time() - start
    # What the loader asks: the row of each position.
    start = time.process_time()
    for position in range(p * k, (1 + MEASURED) * p * k):
        sampler.row(position)
    return first, (time.process_time() - start) / MEASURED


def main() -> None:
    """Prints the table."""
    options = pairs.parse(__doc__, rounds=5)
    rows = []
    for count in COUNTS:
        labels = make_labels(count)
        for p, k in BATCHES:
            found = [measure(labels, p, k) for _ in range(options.rounds)]
            first, each = (
                pairs.Sample(list(seconds))
                for seconds in zip(*found, strict=True)
            )
            rows.append(
                (
                    f"{count:,}",
                    f"{len(np.unique(labels)):,}",
                    f"{p} x {k}",
                    each.describe(".2f", 1e3),
                    first.describe(".0f", 1e3),
                )
            )
    head = (
        "pictures",
        "identities",
        "batch",
        "ms per batch",
        "start and first batch, ms",
    )
    machine = pairs.describe_machine("numpy")
    pairs.publish("pk_sampler", pairs.table(head, rows), machine, options.write)


if __name__ == "__main__":
    main()
