"""Milliseconds per augmented image: our input pipeline beside torchvision's.

    python benchmarks/input_pipeline.py [--workers 2] [--write]

Photos to batches of 224 px with RandomResizedCrop(.5-1), flip, RandAugment(2,
9) and ColorJitter(.4, .4, .4, .1): from JPEG files of 480x360 and of
1600x1200, from ArrayRecord shards (torchvision has the files), and from
decoded pixels in memory. Each side is a process of its own, stopped while
another has its turn.

Without workers, time is CPU time of the process with its threads, so that a
core shared with others counts for what it gave. With workers it is wall time,
for which the machine should be quiet.
"""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import pairs

SIZE, BATCH = 224, 16
# Both have batches ready when their turn comes; they do not count.
READY_MADE, READY_MADE_BY_WORKER = 4, 3


FILES, RECORDS, MEMORY = "files", "records", "memory"


@dataclasses.dataclass(frozen=True)
class Photos:
    """What is read.

    Attributes:
      title: for people.
      width: in pixels.
      height: in pixels.
      kept: where they are read from: FILES, RECORDS or MEMORY (as pixels).
      count: how many.
    """

    title: str
    width: int
    height: int
    kept: str
    count: int

    def write(self, folder: Path) -> None:
        """Writes JPEG files with detail at every scale, 3 bits a pixel."""
        rng = np.random.default_rng(0)
        pixels = np.zeros((self.height, self.width, 3))
        for octave in range(2, 9):
            side = 2**octave
            noise = rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
            layer = Image.fromarray(noise).resize((self.width, self.height))
            pixels += (np.asarray(layer) - 127.5) * 2.4 / octave**1.5
        pixels = np.clip(pixels + 115, 0, 255).astype(np.uint8)
        for number in range(self.count):
            image = Image.fromarray(np.roll(pixels, 7 * number, axis=1))
            image.save(folder / f"{number}.jpg", quality=90)


PHOTOS = (
    Photos("480x360 JPEG", 480, 360, FILES, 128),
    Photos("1600x1200 JPEG", 1600, 1200, FILES, 32),
    Photos("480x360 in ArrayRecord", 480, 360, RECORDS, 128),
    Photos("480x360 in memory", 480, 360, MEMORY, 128),
)


def our_images(photos: Photos, folder: Path):
    """Returns the photos as our pipeline reads them."""
    from input_pipeline.sources import records, records_writer
    from input_pipeline.sources.base import ArrayExamples, FileExamples, Source

    labels = np.zeros(photos.count, np.int32)
    ids = np.array([f"{number}.jpg" for number in range(photos.count)])
    if photos.kept == MEMORY:
        pixels = [np.array(Image.open(folder / name)) for name in ids]
        return ArrayExamples(ids, labels, np.stack(pixels))
    images = FileExamples(ids, labels, str(folder), ids.tolist())
    if photos.kept == FILES:
        return images
    source = Source("folders", images, None, ("0",), None, "id", "label", "")
    shards = tempfile.mkdtemp(dir=folder)  # for each side its own
    records_writer.convert(source, shards, records_writer.ROWS_PER_SHARD)
    return records.open_records(types.SimpleNamespace(root=shards)).labelled


def our_batches(
    photos: Photos, folder: Path, workers: int, device: bool
) -> Iterator:
    """Ours: bytes, to be normalised and erased on the device."""
    from input_pipeline import loader
    from input_pipeline.samplers import ShuffledSampler
    from input_pipeline.transforms.policy import Augment, TrainTransform

    return loader.train_batches(
        our_images(photos, folder),
        TrainTransform(Augment(device=device), SIZE),
        ShuffledSampler(np.arange(photos.count), 0),
        batch_size=BATCH,
        seed=0,
        workers=workers,
    )


def their_batches(
    photos: Photos, folder: Path, workers: int, end: str
) -> Iterator:
    """torchvision's, ending in bytes or in floats."""
    from benchmarks import torch_input

    files = [folder / f"{number}.jpg" for number in range(photos.count)]
    if photos.kept == MEMORY:
        files = [Image.open(file).convert("RGB") for file in files]
    return torch_input.batches(files, SIZE, BATCH, workers, end)


SIDES = {
    "ours": (our_batches, False),
    "ours, colours on the device": (our_batches, True),
    "torchvision": (their_batches, "bytes"),
    "torchvision, normalised and erased": (their_batches, "floats"),
}


def serve(
    side: str,
    photos: Photos,
    folder: Path,
    workers: int,
    orders: Connection,
) -> None:
    """Answers each number of batches with seconds per image."""
    os.setpgrp()
    make, kind = SIDES[side]
    batches = make(photos, folder, workers, kind)
    clock = time.perf_counter if workers else time.process_time
    ready = READY_MADE + READY_MADE_BY_WORKER * workers
    while count := orders.recv():
        for _ in itertools.islice(batches, ready):
            pass
        start = clock()
        for _ in itertools.islice(batches, count):
            pass
        orders.send((clock() - start) / (count * BATCH))


class Side:
    """A process that prepares batches when asked, and stands still if not."""

    def __init__(self, *arguments):
        self._orders, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=serve, args=(*arguments, theirs)
        )
        self._process.start()

    def measure(self, batches: int) -> float:
        """Returns seconds per image over `batches` batches."""
        self._signal(signal.SIGCONT)
        self._orders.send(batches)
        try:
            return self._orders.recv()
        finally:
            self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """Ends it and its workers."""
        self._signal(signal.SIGKILL)
        self._process.join()

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:  # It has no group of its own yet.
            os.kill(self._process.pid, number)


def compare(
    photos: Photos, workers: int, rounds: int, batches: int
) -> dict[str, pairs.Sample]:
    """Returns seconds per image of every side."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos.write(folder)
        sides = {side: Side(side, photos, folder, workers) for side in SIDES}
        try:
            return pairs.alternate(
                {
                    name: lambda side=side: side.measure(batches)
                    for name, side in sides.items()
                },
                rounds,
            )
        finally:
            for side in sides.values():
                side.close()


def row(photos: Photos, found: dict[str, pairs.Sample]) -> list[str]:
    """Returns a line of the table."""
    ours, device, theirs, usual = (found[side] for side in SIDES)
    return [
        photos.title,
        *(side.describe(".2f", 1e3) for side in (ours, device, theirs, usual)),
        f"{pairs.times_faster(ours, theirs):.2f}",
        f"{pairs.times_faster(ours, usual):.2f}",
        f"{pairs.times_faster(device, theirs):.2f}",
    ]


def main() -> None:
    """Prints the table."""
    options = pairs.parse(
        __doc__,
        rounds=9,
        workers=dict(type=int, default=0),
        batches=dict(type=int, default=2, help="in each turn"),
    )
    rows = []
    for photos in PHOTOS:
        found = compare(
            photos, options.workers, options.rounds, options.batches
        )
        rows.append(row(photos, found))
        print(*rows[-1], sep=" | ", flush=True)
    head = (
        "ms per image",
        "ours",
        "colours on the device",
        "torchvision",
        "and normalised, erased",
        "times faster",
        "than the usual chain",
        "with colours on the device",
    )
    section = f"input_{options.workers}_workers"
    machine = pairs.describe_machine("pillow", "grain", "torch", "torchvision")
    pairs.publish(section, pairs.table(head, rows), machine, options.write)


if __name__ == "__main__":
    main()
