"""Scores of segmentation: our network beside the same one of smp on PyTorch.

    python benchmarks/segmentation.py --data FOLDER --runs FOLDER \
        [--pairs NAME:PIXELS:EPOCHS[:turned] ...]

One training each, under the same recipe: data, augmentation (ours makes the
batches of both), weights to start from, loss, AdamW, rates, averaged weights,
test-time views. Each trains in a process of its own, whose processor time is
told, start and compilation included; a side that is done already is not trained
again. Scores are those of the validation images at their own size, by the same
code, with bootstrap intervals over images; of the difference, the same images
are drawn for both.

Needs requirements-torch.txt; `taskset -c 0` gives both sides one core.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import pairs
from core.atomic_files import write_text
from metrics import segmentation
from reports.segmentation import read_counts

RECIPE = "configs/unet.py:pretrained"
PAIRS = ("blood3:160:24:turned", "steel3:192:24:turned", "camvid:224:13")
# For pictures without an up: all eight positions, in tests the four flips.
TURNED = (
    "--config.augment.flip_vertical=0.5",
    "--config.augment.transpose=0.5",
    "--config.eval.tta=('whole','flip','flip_vertical','flip_both')",
)
PAGE = pairs.ROOT / "docs" / "segmentation.md"
SCORES = {
    "mDice": segmentation.mean_dice_from_confusion,
    "mIoU": segmentation.mean_iou_from_confusion,
}
SIDES = {"ours": "train.py", "theirs": "benchmarks/segmentation_torch.py"}
# In a run folder: what its training took.
TIMES = "processor_seconds.json"


class Pair(NamedTuple):
    """One training of each side.

    Attributes:
      name: of the data set, a folder in `--data`.
      pixels: a side of what the networks see.
      epochs: of the training.
      turned: whether the pictures have no up.
    """

    name: str
    pixels: int
    epochs: float
    turned: bool

    @classmethod
    def parse(cls, text: str) -> Pair:
        """Reads "name:pixels:epochs", perhaps with ":turned"."""
        name, pixels, epochs, *more = text.split(":")
        return cls(name, int(pixels), float(epochs), more == ["turned"])


def train(pair: Pair, side: str, options) -> None:
    """Trains one side, unless it is done."""
    workdir = Path(options.runs) / f"{pair.name}-{side}"
    if (workdir / TIMES).exists():
        return
    command = [
        *(sys.executable, SIDES[side], f"--config={options.recipe}"),
        f"--workdir={workdir}",
        f"--config.data.root={Path(options.data) / pair.name}",
        f"--config.image_size={pair.pixels}",
        f"--config.epochs={pair.epochs}",
        *(TURNED if pair.turned else ()),
    ]
    process = subprocess.Popen(command, cwd=pairs.ROOT)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} has failed")
    taken = {"seconds": used.ru_utime + used.ru_stime, "command": command}
    write_text(workdir / TIMES, json.dumps(taken))


def interval(counts: np.ndarray, score: Callable) -> str:
    """Returns a score of images with its interval."""
    low, high = segmentation.bootstrap_interval(counts, score)
    return f"{float(score(counts.sum(0))):.4f} ({low:.4f}-{high:.4f})"


def row(pair: Pair, runs: Path) -> list[str]:
    """Returns the table's line of a pair; a side that is not there has a dash.

    Raises:
      SystemExit: the two sides have not scored the same pixels.
    """
    folders = [runs / f"{pair.name}-{side}" for side in SIDES]
    folders = [folder for folder in folders if (folder / TIMES).exists()]
    sides = [read_counts(folder) for folder in folders]
    both = np.stack([side.confusion for side in sides], 1)  # [N, 2, C, C]
    if any(
        side.ids.tolist() != sides[0].ids.tolist()
        or (side.confusion.sum(-1) != sides[0].confusion.sum(-1)).any()
        for side in sides
    ):
        raise SystemExit(f"{folders} have not scored the same pixels")
    alone = len(sides) < len(SIDES)
    cells = [f"{pair.name}, {pair.pixels} px, {pair.epochs:g} epochs"]
    for score in SCORES.values():
        cells += [interval(both[:, side], score) for side in range(len(sides))]
        if alone:
            cells += ["–", "–"]
            continue
        low, high = segmentation.bootstrap_interval(
            both, lambda c, score=score: score(c)[..., 0] - score(c)[..., 1]
        )
        apart = np.subtract(*score(both.sum(0)))
        cells.append(f"{apart:+.4f} ({low:+.4f} to {high:+.4f})")
    for folder in folders:
        taken = json.loads((folder / TIMES).read_text())["seconds"]
        cells.append(f"{taken / 60:.1f}")
    return [*cells, "–"] if alone else cells


def main() -> None:
    """Trains what is not trained yet, and prints the table."""
    options = pairs.parse(
        __doc__,
        rounds=1,
        data=dict(required=True, help="folder with a data set in each folder"),
        runs=dict(required=True, help="folder of the run folders"),
        pairs=dict(
            nargs="+", default=PAIRS, help="name:pixels:epochs[:turned]"
        ),
        sides=dict(nargs="+", default=tuple(SIDES), choices=tuple(SIDES)),
        recipe=dict(default=RECIPE),
    )
    rows = []
    for pair in map(Pair.parse, options.pairs):
        for side in options.sides:
            train(pair, side, options)
        if "ours" in options.sides:
            rows.append(row(pair, Path(options.runs)))
            print(*rows[-1], sep=" | ", flush=True)
    if not rows:
        return
    head = ["validation"]
    for name in SCORES:
        head += [f"{name}, ours", "smp", "difference"]
    head += ["minutes, ours", "smp"]
    text = pairs.table(head, rows)
    text += "\n\nMinutes are processor time of the whole command."
    packages = ["jax", "torch"] if "theirs" in options.sides else ["jax"]
    machine = pairs.describe_machine(*packages)
    pairs.publish("scores", text, machine, options.write, PAGE)


if __name__ == "__main__":
    main()
