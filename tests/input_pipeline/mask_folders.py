"""Small folders of images with masks."""

from __future__ import annotations

import numpy as np
from PIL import Image

CLASSES = "index,name,ignore\n0,ground,0\n1,crack,0\n2,hole,0\n"


def mask_of(row, size=(20, 16)):
    """Mostly ground, with a crack in even and a hole in odd images."""
    mask = np.zeros(size[::-1], np.uint8)
    mask[2:5, 3 : 9 + row] = 1 + row % 2
    return mask


def write_split(root, split, count, start=0, folders=("img_{}", "mask_{}")):
    """Writes images p0, p1, … of one split with masks."""
    images, masks = (root / name.format(split) for name in folders)
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    for row in range(start, start + count):
        pixels = np.full((16, 20, 3), 10 * row, np.uint8)
        Image.fromarray(pixels).save(images / f"p{row}.jpg")
        Image.fromarray(mask_of(row)).save(masks / f"p{row}.png")


def write_folder(root):
    """Six images to train, three to validate, two to predict."""
    write_split(root, "train", 6)
    write_split(root, "val", 3, start=6)
    write_split(root, "test", 2, start=9)
    (root / "classes.csv").write_text(CLASSES)
    return root


def save_mask(root, values, name="mask_train/p0.png", **options):
    """Writes a mask."""
    Image.fromarray(values).save(root / name, **options)
