"""Images per second and core: our pipeline beside torchvision + DataLoader.

480x360 JPEG files to augmented 224 px batches, both with RandomResizedCrop,
flip, RandAugment(2, 9) and ColorJitter(.4, .4, .4, .1). Each side is a process
of its own; they take turns, so that both meet the same machine, and the figure
is the median of the rounds' ratios. Time is CPU time of the process, threads
and all: wall time on an idle core, without what other programs take.

Needs the packages of requirements.txt and requirements-torch.txt together:

    python benchmarks/input_pipeline.py
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

SIZE, BATCH = 224, 64
WIDTH, HEIGHT = 480, 360
# Our thread has batches ready when its turn comes; they do not count.
MADE_IN_ADVANCE = 4
MEAN, STD = (0.4638, 0.4522, 0.4148), (0.2222, 0.2198, 0.2176)


def make_photos(folder: Path, count: int) -> list[str]:
    """Writes JPEG files with detail at every scale, about 45 kB each."""
    rng = np.random.default_rng(0)
    names = []
    for number in range(count):
        pixels = np.zeros((HEIGHT, WIDTH, 3))
        for octave in range(2, 9):
            side = 2**octave
            noise = rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
            layer = Image.fromarray(noise).resize((WIDTH, HEIGHT))
            pixels += (np.asarray(layer) - 127.5) * 2.4 / octave**1.5
        pixels = np.clip(pixels + 115, 0, 255).astype(np.uint8)
        names.append(f"{number}.jpg")
        Image.fromarray(pixels).save(folder / names[-1], quality=90)
    return names


def our_batches(folder: Path, names: list[str]) -> Iterator:
    """Ours: bytes, to be normalised and erased on the device."""
    from input_pipeline import pipeline
    from input_pipeline.augment import Augment
    from input_pipeline.images import FileImages

    rows = np.arange(len(names))
    images = FileImages(np.array(names), rows * 0, str(folder), names)
    return pipeline.train_batches(
        images, rows, Augment(), size=SIZE, batch_size=BATCH, seed=0
    )


def torch_batches(folder: Path, names: list[str], end: str) -> Iterator:
    """The same by torchvision; `end` is 'bytes' or 'floats'."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    # torchvision's C++ operators are not needed here, only their names.
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou) -> Tensor")
    from torchvision import transforms

    chain = [
        transforms.RandomResizedCrop(SIZE, (0.5, 1.0), (0.75, 1.3333)),
        transforms.RandomHorizontalFlip(),
        transforms.RandAugment(2, 9),
        transforms.ColorJitter(0.4, 0.4, 0.4, 0.1),
    ]
    if end == "bytes":
        chain.append(transforms.PILToTensor())
    else:
        chain += [
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
            transforms.RandomErasing(0.25, (0.02, 0.2), (0.3, 3.3), "random"),
        ]
    chain = transforms.Compose(chain)

    class Photos(Dataset):
        def __len__(self) -> int:
            return len(names)

        def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
            with Image.open(folder / names[row]) as image:
                return chain(image.convert("RGB")), row

    torch.set_num_threads(1)
    loader = DataLoader(Photos(), BATCH, shuffle=True, drop_last=True)
    while True:
        yield from loader


SIDES = {
    "ours (bytes)": our_batches,
    "torchvision, bytes": lambda *photos: torch_batches(*photos, "bytes"),
    "torchvision, normalised, erased": lambda *photos: torch_batches(
        *photos, "floats"
    ),
}


def serve(
    side: str, folder: Path, names: list[str], orders: Connection
) -> None:
    """Answers each number of batches with images per CPU second."""
    batches = SIDES[side](folder, names)
    while count := orders.recv():
        for _ in itertools.islice(batches, MADE_IN_ADVANCE):
            pass
        start = time.process_time()
        for _ in itertools.islice(batches, count):
            pass
        orders.send(count * BATCH / (time.process_time() - start))


def main() -> None:
    """Prints medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=3, help="per round")
    parser.add_argument("--photos", type=int, default=256)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = make_photos(folder, options.photos)
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(
            f"{len(names)} JPEG files {WIDTH}x{HEIGHT} of "
            f"{size / len(names):.0f} bytes to {SIZE} px, batch {BATCH}"
        )
        orders = {}
        for side in SIDES:
            orders[side], theirs = spawn.Pipe()
            spawn.Process(
                target=serve, args=(side, folder, names, theirs), daemon=True
            ).start()
        rates = {side: [] for side in SIDES}
        for round_number in range(options.rounds + 1):
            for side, connection in orders.items():
                connection.send(options.batches)
                speed = connection.recv()
                if round_number:  # The first one fills tables and caches.
                    rates[side].append(speed)
        for connection in orders.values():
            connection.send(0)
    ours = rates[next(iter(SIDES))]
    for side, values in rates.items():
        ratio = statistics.median(
            own / other for own, other in zip(ours, values, strict=True)
        )
        print(
            f"{side:32s} {statistics.median(values):7.1f} images/s per core; "
            f"ours / this: {ratio:.2f}"
        )


if __name__ == "__main__":
    main()
