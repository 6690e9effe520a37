"""Milliseconds per augmented image by the number of images.

    python benchmarks/input_growth.py [--write]

The same 64 JPEG files of 480x360 under as many names as there are images, so
that what grows is what the pipeline does with numbers of images: their order,
their labels, its start. CPU time, one core.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import pairs
from benchmarks.input_pipeline import BATCH, PHOTOS, READY_MADE, SIZE
from input_pipeline import loader
from input_pipeline.samplers import ShuffledSampler
from input_pipeline.sources.base import FileExamples
from input_pipeline.transforms.policy import Augment, TrainTransform

COUNTS = (1_000, 10_000, 100_000)
FILES = 64


class Stream:
    """Batches of `count` images; measures itself."""

    def __init__(self, folder: Path, count: int):
        start = time.process_time()
        rows = np.arange(count)
        names = [f"{row % FILES}.jpg" for row in rows]
        images = FileExamples(rows.astype(str), rows % 16, str(folder), names)
        self.batches = loader.train_batches(
            images,
            TrainTransform(Augment(), SIZE),
            ShuffledSampler(rows, 0),
            batch_size=BATCH,
            seed=0,
            # An epoch's edge lies within what is measured, with its new order.
            start_step=count // BATCH - READY_MADE - 2,
        )
        next(self.batches)
        self.start = time.process_time() - start

    def seconds_per_image(self, batches: int = 4) -> float:
        """Returns CPU time."""
        for _ in itertools.islice(self.batches, READY_MADE):
            pass
        start = time.process_time()
        for _ in itertools.islice(self.batches, batches):
            pass
        return (time.process_time() - start) / (batches * BATCH)


def main() -> None:
    """Prints the table."""
    options = pairs.parse(__doc__, rounds=7)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        PHOTOS[0].write(folder)
        costs, starts = {}, {}
        # One at a time: a stream that rests still fills its buffers.
        for number in range(options.rounds):
            order = COUNTS if number % 2 else COUNTS[::-1]
            for count in order:
                stream = Stream(folder, count)
                cost = stream.seconds_per_image()
                stream.batches.close()
                starts.setdefault(count, []).append(stream.start)
                costs.setdefault(count, []).append(cost)
    least = pairs.Sample(costs[COUNTS[0]])
    rows = []
    for count in COUNTS:
        cost, start = pairs.Sample(costs[count]), pairs.Sample(starts[count])
        rows.append(
            (
                f"{count:,}",
                cost.describe(".2f", 1e3),
                f"{1 / pairs.times_faster(least, cost):.2f}",
                start.describe(".0f", 1e3),
            )
        )
    head = (
        "images",
        "ms per image",
        "times faster than 1,000",
        "start and first batch, ms",
    )
    machine = pairs.describe_machine("pillow", "grain", "numpy")
    text = pairs.table(head, rows)
    pairs.publish("input_growth", text, machine, options.write)


if __name__ == "__main__":
    main()
