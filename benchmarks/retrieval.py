"""Time and memory of looking up every picture among all others.

    python benchmarks/retrieval.py [--pictures 60000] [--width 512]

All distances of 60,000 pictures at once would be 14.4 GB.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import pairs
from metrics import retrieval

EACH = 5  # pictures of an identity


def main() -> None:
    """Prints seconds, and the largest memory of the process."""
    options = pairs.parse(
        __doc__,
        rounds=1,
        pictures=dict(type=int, default=60_000),
        width=dict(type=int, default=512),
    )
    rng = np.random.default_rng(0)
    count = options.pictures
    labels = np.arange(count) // EACH
    embeddings = rng.standard_normal((count, options.width), np.float32)
    own = np.arange(count)
    before, start = peak(), time.perf_counter()
    rows, _ = retrieval.nearest(embeddings, embeddings, 10, own)
    ranking = retrieval.rank(rows, labels, labels, own)
    retrieval.scores(ranking, (1, 5, 10))
    taken = time.perf_counter() - start
    text = (
        f"{count:,} pictures of {options.width} numbers, the 10 nearest of "
        f"each: {taken:.0f} s, {peak() / 1e9:.2f} GB at most "
        f"({before / 1e9:.2f} GB before)"
    )
    machine = pairs.describe_machine("numpy")
    pairs.publish("retrieval", text, machine, options.write)


def peak() -> int:
    """Returns the largest memory of the process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
