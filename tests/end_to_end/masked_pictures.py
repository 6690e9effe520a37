"""Small pictures with masks, and the command that trains on them."""

import commands
import numpy as np
from PIL import Image

RECIPE = commands.ROOT / "tests/end_to_end/segmentation_recipe.py"
PALETTE = [20, 20, 20, 220, 30, 30, 30, 30, 220]


def write_data(root):
    """Squares or bars on a noisy ground, of several sizes, palette masks."""
    rng = np.random.default_rng(0)
    count = {"train": 12, "val": 5, "test": 3}
    for split, images in count.items():
        for kind in ("img", "mask"):
            (root / f"{kind}_{split}").mkdir(parents=True)
        for row in range(images):
            height, width = rng.integers(30, 50, 2)
            mask = np.zeros((height, width), np.uint8)
            top, left = rng.integers(2, 10, 2)
            kind = 1 + row % 2
            shape = (12, 14) if kind == 1 else (5, 18)
            mask[top : top + shape[0], left : left + shape[1]] = kind
            image = rng.normal(90, 10, (height, width, 3))
            image += 70 * mask[..., None]
            image = np.uint8(image.clip(0, 255))
            Image.fromarray(image).save(root / f"img_{split}/p{row}.png")
            if split == "test":
                continue
            picture = Image.fromarray(mask)
            picture.putpalette(PALETTE)
            picture.save(root / f"mask_{split}/p{row}.png")
    (root / "classes.csv").write_text(
        "index,name,ignore\n0,ground,0\n1,square,0\n2,bar,0\n"
    )
    return root


def words(workdir, data, *arguments):
    return [
        *("train.py", f"--config={RECIPE}", f"--workdir={workdir}"),
        f"--config.data.root={data}",
        f"--config.cache_dir={commands.CACHE}",
        *arguments,
    ]
