"""How long a device waits for images, by how fast it is.

    python benchmarks/starvation.py [--workers 2] [--write]

The loop of train.py with our pipeline (480x360 JPEG to 224 px) and a device
that only takes its time: a step that sleeps, so that it leaves the host's
cores to the loader as an accelerator does. Once as in train.py, where batches
are made in the background, and the next one is fetched and put on the device
while a step runs; and once with every batch made when it is asked for, after
the step before.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import pairs
from benchmarks.input_pipeline import BATCH, PHOTOS, SIZE, our_batches
from input_pipeline.transforms.policy import Augment, TrainTransform
from training.loop.input_stall import InputStallMonitor
from training.multihost import sharding

# Times of a step, in those that the loader takes for a batch.
PACES = (0.5, 0.8, 1.0, 1.25, 2.0)


def sleeping_step(seconds: float):
    """Returns a jitted step that takes so long and no core."""

    def sleep(mark: np.ndarray) -> np.ndarray:
        time.sleep(seconds)
        return mark

    @jax.jit
    def step(batch):
        mark = batch["row"][:1]
        shape = jax.ShapeDtypeStruct(mark.shape, mark.dtype)
        return jax.pure_callback(sleep, shape, mark)

    return step


def share_of_waiting(batches, step, steps: int, ahead: bool) -> float:
    """Returns the share of the time in which no step ran."""
    mesh = sharding.make_mesh()
    placed = (sharding.put_batch(batch, mesh) for batch in batches)
    waiting, before = InputStallMonitor(""), None
    for _ in range(steps):
        result = step(waiting.fetch(placed))
        waiting.dispatched(result)
        jax.block_until_ready(before if ahead else result)
        before = result
    jax.block_until_ready(before)
    waiting.close()
    return waiting.share


def batches_on_demand(folder: Path, count: int) -> Iterator[dict]:
    """Yields such batches as the loader makes, each when it is asked for."""
    names = [folder / f"{number}.jpg" for number in range(count)]
    transform = TrainTransform(Augment(), SIZE)
    rng = np.random.default_rng(0)
    while True:
        rows = rng.choice(count, BATCH)
        images = [
            transform({"image": names[row].read_bytes()}, rng)["image"]
            for row in rows
        ]
        yield {"image": np.stack(images), "row": rows}


def seconds_per_batch(batches, count: int) -> float:
    """Returns how long the loader takes by itself."""
    for _ in range(8):  # Ready-made ones.
        next(batches)
    return pairs.seconds(lambda: next(batches), repeats=count)


def main() -> None:
    """Prints the table."""
    options = pairs.parse(
        __doc__,
        rounds=1,
        workers=dict(type=int, default=0),
        steps=dict(type=int, default=16),
    )
    rows = []
    with contextlib.ExitStack() as resources:
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory()))
        photos = PHOTOS[0]
        photos.write(folder)
        batches = resources.enter_context(
            our_batches(photos, folder, options.workers, False)
        )
        on_demand = batches_on_demand(folder, photos.count)
        for pace in PACES:
            # Anew each time: the machine may have changed its mind.
            loader = seconds_per_batch(batches, options.steps // 2)
            step = sleeping_step(pace * loader)
            shares = [
                share_of_waiting(source, step, options.steps, ahead)
                for source, ahead in ((batches, True), (on_demand, False))
            ]
            least = max(0.0, 1 - pace)
            rows.append(
                (
                    f"{pace:g}",
                    f"{1e3 * pace * loader:.0f}",
                    *(f"{share:.0%}" for share in (least, *shares)),
                )
            )
            print(*rows[-1], sep=" | ", flush=True)
    head = (
        f"step / batch of {BATCH}",
        "step, ms",
        "at best",
        "waiting, as in train.py",
        "with nothing made ahead",
    )
    machine = pairs.describe_machine("jax", "grain", "pillow")
    section = "starvation"
    pairs.publish(section, pairs.table(head, rows), machine, options.write)


if __name__ == "__main__":
    main()
