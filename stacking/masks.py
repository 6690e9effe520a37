"""`python -m stacking.masks`: segmentations in, one mask per image out.

python -m stacking.masks --runs 'runs/*' --out runs/stack

Averages the probabilities that runs have exported
(`--config.segment.probabilities=True`), with weights found on their validation
images. Every score of the mean is nested: an image is predicted with weights
found on the images of other folds. New images get the weights of all.
"""

from __future__ import annotations

if __name__ == "__main__":
    from core import output, signals

    output.install()
    signals.install()  # First of all: the imports below take seconds.

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from core.class_colours import IGNORE
from core.errors import UserError, exit_on_user_error
from core.paths import make_path, reaching
from metrics import segmentation
from reports.mask_ensemble import mask_ensemble_report
from reports.segmentation import Example
from run_folder import layout
from run_folder.artifacts import ArtifactWriter
from stacking import argument_types, mask_weights
from stacking.mask_members import (
    MEAN,
    WEIGHTED,
    Member,
    Picture,
    find_members,
)

MIN_IMAGES = 5
SCORES = "scores.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and does what it says."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    with exit_on_user_error(), reaching(arguments):
        options = _parser().parse_args(arguments)
        with threadpool_limits(limits=1, user_api="blas"):
            stack(
                options.runs,
                make_path(options.out),
                trials=options.trials,
                seed=options.seed,
            )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stacking.masks", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        action="extend",
        required=True,
        metavar="FOLDER",
        help="run folders with probabilities/, or globs of them",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER")
    parser.add_argument(
        "--trials",
        type=argument_types.number(int, 1, 1_000_000),
        default=200,
        help="weightings to try in each search (default: %(default)s)",
    )
    parser.add_argument("--seed", type=argument_types.seed, default=0)
    return parser


def stack(
    runs: Sequence[str],
    out: Path,
    *,
    trials: int = 200,
    seed: int = 0,
    note: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Averages runs, and writes masks, scores and a report.

    Args:
      runs: folders or globs.
      out: folder for `masks/`, `scores.json` and `report.html`.
      trials: weightings to try in each search.
      seed: of sample, folds and searches.
      note: called with each line for people.

    Returns:
      The content of scores.json.

    Raises:
      UserError: the runs do not belong together, or `out` cannot be written.
    """
    started = time.monotonic()
    if layout.has_checkpoint(out) or layout.read_config(out) is not None:
        raise UserError(
            f"--out {out} holds a run, whose masks would be replaced; name "
            "another folder"
        )
    members = find_members(runs, out, note)
    ids = sorted(members[0].files["val"])
    if len(ids) < MIN_IMAGES:
        raise UserError(
            f"the runs share only {len(ids)} validation images, too few to "
            f"find weights and score them; validate on {MIN_IMAGES} or more"
        )
    writer = ArtifactWriter(out, 0)
    writer.begin()
    note(f"weights of {len(members)} runs from {len(ids)} validation images")
    final, nested, folds = mask_weights.search(
        _samples(members, ids, seed), trials, seed
    )
    counts = _validate(members, ids, nested[folds], writer)
    found = counts[WEIGHTED].arrays()
    writer.array(
        layout.MASK_COUNTS,
        **found,
        classes=np.array(Picture("val", ids[0], members).style.classes),
    )
    for image_id in sorted(members[0].files["test"]):
        picture = Picture("test", image_id, members)
        _write_mask(writer, "test", picture, _masks(picture, final[None])[0])
    results = {
        "images": len(ids),
        "test_images": len(members[0].files["test"]),
        "runs": {member.name: str(member.path) for member in members},
        "weights": _by_name(members, final),
        "nested_weights": [_by_name(members, row) for row in nested],
        "scores": {
            name: _scores(own.arrays()["confusion"])
            for name, own in counts.items()
        },
        "trials": trials,
        "seed": seed,
    }
    writer.json(SCORES, results)
    mask_ensemble_report(out, results, _examples(members[0], out))
    writer.finish()
    for line in _table(results):
        note(line)
    scores = results["scores"]
    if scores[WEIGHTED]["mean_dice"] < scores[MEAN]["mean_dice"]:
        note(
            "on images that the weights have not seen, equal weights are "
            "better: there are too few to find weights, or the runs are alike"
        )
    note(f"wrote {out} in {time.monotonic() - started:.0f} s")
    return results


def _samples(
    members: Sequence[Member], ids: Sequence[str], seed: int
) -> list[mask_weights.Sample]:
    pixels = 0
    for image_id in ids:  # All members have the same labels.
        labels = Picture("val", image_id, members[:1]).labels
        pixels += int((labels != IGNORE).sum())
    if not pixels:
        raise UserError(
            "the validation images have no pixel with a class, so there is "
            "nothing to find weights on; see to the masks"
        )
    share = min(1.0, mask_weights.SAMPLE_PIXELS / pixels)
    return [
        mask_weights.draw(Picture("val", image_id, members), share, (seed, row))
        for row, image_id in enumerate(ids)
    ]


def _validate(
    members: Sequence[Member],
    ids: Sequence[str],
    weights: np.ndarray,
    writer: ArtifactWriter,
) -> dict[str, segmentation.ImageCounts]:
    """Counts every member, their mean, and the mean with an image's weights.

    Writes the masks of the last.
    """
    number = len(members)
    names = [*(member.name for member in members), MEAN, WEIGHTED]
    counts = {}
    for image_id, own in zip(ids, weights, strict=True):
        picture = Picture("val", image_id, members)
        all_weights = [*np.eye(number), np.full(number, 1 / number), own]
        masks = _masks(picture, np.stack(all_weights))
        for name, mask in zip(names, masks, strict=True):
            if name not in counts:
                classes = len(picture.style.classes)
                counts[name] = segmentation.ImageCounts(classes, IGNORE)
            counts[name].add(image_id, picture.labels, mask)
        _write_mask(writer, "val", picture, masks[-1])
    return counts


def _masks(picture: Picture, weights: np.ndarray) -> np.ndarray:
    """uint8 [K, H, W], the likeliest class under each of [K, M] weights."""
    masks = np.empty((len(weights), *picture.shape), np.uint8)
    top = 0
    for stripe in picture.stripes():
        rows = slice(top, top + stripe.shape[1])
        flat = stripe.reshape(len(stripe), -1)
        for mask, own in zip(masks, weights.astype(np.float32), strict=True):
            mean = (own @ flat).reshape(stripe.shape[1:])
            mask[rows] = mean.argmax(-1)
        top = rows.stop
    return masks


def _write_mask(
    writer: ArtifactWriter, split: str, picture: Picture, mask: np.ndarray
) -> None:
    name = layout.image_file("masks", split, picture.id, ".png")
    style = picture.style
    writer.mask(name, style.encode(mask), style.palette)


def _by_name(
    members: Sequence[Member], weights: np.ndarray
) -> dict[str, float]:
    return {
        member.name: float(weight)
        for member, weight in zip(members, weights, strict=True)
    }


def _scores(confusions: np.ndarray) -> dict[str, Any]:
    return {
        **segmentation.scores(confusions),
        "mean_dice_interval": segmentation.bootstrap_interval(
            confusions, segmentation.mean_dice_from_confusion
        ),
    }


def _table(results: dict[str, Any]) -> Iterator[str]:
    width = max(map(len, results["scores"]))
    yield f"{'':{width}}  mDice   95 % interval     mIoU    weight"
    for name, own in results["scores"].items():
        low, high = own["mean_dice_interval"]
        weight = results["weights"].get(name)
        yield (
            f"{name:{width}}  {own['mean_dice']:.4f}  {low:.4f} to {high:.4f}  "
            f"{own['mean_iou']:.4f}  "
            + ("" if weight is None else f"{weight:.3f}")
        ).rstrip()


def _examples(member: Member, out: Path):
    """Reads the images of the runs' data with the masks of the stack."""
    config = layout.read_config(member.path)
    if config is None or "data" not in config:
        return None

    def read(ids: Sequence[str]) -> Iterator[Example]:
        # By name, and only when asked: the stack works without the package
        # that reads images, and without the images.
        module = importlib.import_module("input_pipeline.sources.pictures")
        cache = Path(config["cache_dir"]).expanduser()
        by_name = {
            layout.image_file("masks", "val", name, ".png"): name
            for name in ids
        }
        for name, image, truth, form in module.read_masked_pictures(
            config["data"], [*ids, *(f"val/{one}" for one in ids)], cache
        ):
            file = layout.image_file("masks", "val", name, ".png")
            mask = form.decode((out / file).read_bytes())
            yield Example(by_name[file], image, truth, mask)

    return read


if __name__ == "__main__":
    main()
