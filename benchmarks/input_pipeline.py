"""Images per second and core: our pipeline beside torchvision + DataLoader.

480x360 JPEG files to augmented 224 px batches, both with RandomResizedCrop,
flip, RandAugment(2, 9) and ColorJitter(.4, .4, .4, .1). The two take turns in
one process that is bound to one core, so that both meet the same machine; the
figure is the median of the rounds' ratios.

Needs the packages of requirements.txt and requirements-torch.txt together:

    python benchmarks/input_pipeline.py
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from input_pipeline import pipeline
from input_pipeline.augment import Augment
from input_pipeline.images import FileImages

# torchvision's C++ operators are not needed here, only their names.
_LIBRARY = torch.library.Library("torchvision", "DEF")
_LIBRARY.define("nms(Tensor dets, Tensor scores, float iou) -> Tensor")
_LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou) -> Tensor")

from torchvision import transforms  # noqa: E402

SIZE, BATCH = 224, 64
WIDTH, HEIGHT = 480, 360
# Batches that our thread has ready while the other side is measured.
BUFFERED = 4
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


class TorchPhotos(Dataset):
    """The same files for torchvision."""

    def __init__(self, folder: Path, names: list[str], on_host: bool):
        self._paths = [folder / name for name in names]
        chain = [
            transforms.RandomResizedCrop(SIZE, (0.5, 1.0), (0.75, 1.3333)),
            transforms.RandomHorizontalFlip(),
            transforms.RandAugment(2, 9),
            transforms.ColorJitter(0.4, 0.4, 0.4, 0.1),
        ]
        if on_host:
            chain += [
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
                transforms.RandomErasing(
                    0.25, (0.02, 0.2), (0.3, 3.3), "random"
                ),
            ]
        else:
            chain += [transforms.PILToTensor()]
        self._chain = transforms.Compose(chain)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        with Image.open(self._paths[row]) as image:
            return self._chain(image.convert("RGB")), row


def endless(loader: DataLoader):
    """Epoch after epoch."""
    while True:
        yield from loader


def rate(batches, count: int, buffered: int) -> float:
    """Images per second over `count` batches after those made in advance."""
    for _ in itertools.islice(batches, buffered):
        pass
    start = time.perf_counter()
    for _ in itertools.islice(batches, count):
        pass
    return count * BATCH / (time.perf_counter() - start)


def wait_until_idle() -> None:
    """Until our thread has filled its buffer: it must not slow the others."""
    while True:
        before = time.process_time()
        time.sleep(0.2)
        if time.process_time() - before < 0.02:
            return


def main() -> None:
    """Prints medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=3, help="per round")
    parser.add_argument("--photos", type=int, default=256)
    parser.add_argument("--core", type=int, default=0)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = make_photos(folder, options.photos)
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(
            f"{len(names)} JPEG files {WIDTH}x{HEIGHT} of "
            f"{size / len(names):.0f} bytes to {SIZE} px, batch {BATCH}, one "
            "core"
        )
        images = FileImages(
            np.array(names), np.zeros(len(names), np.int32), str(folder), names
        )
        ours = pipeline.train_batches(
            images,
            np.arange(len(names)),
            Augment(),
            size=SIZE,
            batch_size=BATCH,
            seed=0,
        )
        sides = {
            "sextet (bytes; normalise and erase on device)": ours,
            "torchvision, as far as bytes": None,
            "torchvision, normalise and erase too": None,
        }
        for side, on_host in zip(list(sides)[1:], (False, True), strict=True):
            loader = DataLoader(
                TorchPhotos(folder, names, on_host),
                BATCH,
                shuffle=True,
                drop_last=True,
            )
            sides[side] = endless(loader)
        rates = {side: [] for side in sides}
        for round_number in range(options.rounds + 1):
            for side, batches in sides.items():
                is_ours = batches is ours
                speed = rate(
                    batches, options.batches, BUFFERED if is_ours else 0
                )
                if round_number:  # The first one fills tables and caches.
                    rates[side].append(speed)
                if is_ours:
                    wait_until_idle()
        ours.close()
    own = rates[next(iter(sides))]
    for side, values in rates.items():
        ratio = statistics.median(
            mine / other for mine, other in zip(own, values, strict=True)
        )
        print(
            f"{side:48s} {statistics.median(values):7.1f} images/s, ours is "
            f"{ratio:.2f} times that"
        )


if __name__ == "__main__":
    main()
