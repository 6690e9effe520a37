"""The input pipeline that people have: torchvision's chain and a DataLoader.

The augmentations of our default recipe in Pillow images, which is the form in
which torchvision is fastest: its tensor kernels resize no faster and take
several times as long for the colours. Importing this module imports torch and
torchvision (requirements-torch.txt).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

# torchvision's compiled operators are missing beside a CPU-only torch; they
# are not needed here, only their names.
if not torch.cuda.is_available():
    _LIBRARY = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _LIBRARY.define(
            f"{_name}(Tensor dets, Tensor scores, float iou_threshold)"
            " -> Tensor"
        )

from torchvision.transforms import v2

MEAN, STD = (0.4638, 0.4522, 0.4148), (0.2222, 0.2198, 0.2176)

# What a batch is made of at the end.
BYTES, FLOATS = "bytes", "floats"


def chain(size: int, end: str) -> v2.Compose:
    """Returns crop, flip, RandAugment and ColorJitter.

    Args:
      size: side of the images in pixels.
      end: BYTES for just these, which is what our host does; FLOATS for all
        that people do on the host: also normalise and erase.
    """
    steps = [
        v2.RandomResizedCrop(size, (0.5, 1.0), (0.75, 1.3333)),
        v2.RandomHorizontalFlip(),
        v2.RandAugment(2, 9),
        v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
        v2.PILToTensor(),
    ]
    if end == FLOATS:
        steps += [
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            v2.RandomErasing(0.25, (0.02, 0.2), (0.3, 3.3), "random"),
        ]
    return v2.Compose(steps)


class Photos(Dataset):
    """Images in files, or as Pillow images in memory."""

    def __init__(self, photos: Sequence[Path | Image.Image], transform):
        self._photos, self._transform = photos, transform

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        photo = self._photos[row]
        if isinstance(photo, Image.Image):
            return self._transform(photo), row
        with Image.open(photo) as image:
            return self._transform(image.convert("RGB")), row


def batches(
    photos: Sequence[Path | Image.Image],
    size: int,
    batch: int,
    workers: int,
    end: str,
) -> Iterator:
    """Yields shuffled batches for ever."""
    torch.set_num_threads(1)
    loader = DataLoader(
        Photos(photos, chain(size, end)),
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader
