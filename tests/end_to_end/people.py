"""Small pictures of people, some forged, and the command that learns them."""

import json

import commands
import numpy as np
from PIL import Image

RECIPE = commands.ROOT / "tests/end_to_end/verify_recipe.py"
PEOPLE, REAL, FORGED, PAIRS = 9, 4, 2, 6


def write_data(root, broken=()):
    """A person is a pattern; a forgery has a bright band across it.

    Args:
      root: folder to make.
      broken: names of pictures that cannot be read.
    """
    rng = np.random.default_rng(0)
    patterns = rng.normal(120, 60, (PEOPLE + 3, 8, 8))

    def save(name, person, forged):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.kron(patterns[person], np.ones((4, 4)))
        pixels = pixels + rng.normal(0, 20, pixels.shape)
        if forged:
            pixels[12:18] = 230
        picture = Image.fromarray(np.uint8(pixels.clip(0, 255)))
        picture.save(path)
        if name in broken:
            path.write_bytes(path.read_bytes()[:40])

    flags = {}
    for person in range(PEOPLE):
        for number in range(REAL + FORGED):
            name = f"train/{person:03d}/{number:02d}.png"
            flags[name] = int(number >= REAL)
            save(name, person, flags[name])
    (root / "meta.json").write_text(json.dumps(flags))
    rows = ["similarity,pair_id"]
    for pair in reversed(range(PAIRS)):
        save(f"test/{pair:08d}/0.png", PEOPLE + pair % 3, False)
        other = PEOPLE + (pair + pair // 3) % 3
        save(f"test/{pair:08d}/1.png", other, False)
        rows.append(f"0.5,{pair:08d}")
    (root / "sample_submission.csv").write_text("\n".join(rows) + "\n")
    return root


def words(workdir, data, *arguments):
    return [
        *("train.py", f"--config={RECIPE}", f"--workdir={workdir}"),
        f"--config.data.root={data}",
        f"--config.cache_dir={commands.CACHE}",
        *arguments,
    ]
