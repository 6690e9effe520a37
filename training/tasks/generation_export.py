"""What a generator leaves: images, a manifest of what it saw, and scores."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageFilter

from core.errors import UserError
from metrics import generation
from run_folder import layout, sample_manifest
from training.multihost import comm, sharding
from training.tasks import pca_gaussian
from training.tasks.judge import Judge, Opinion

if TYPE_CHECKING:
    from run_folder.artifacts import ArtifactWriter
    from training.data import Data

# Images of which there are scores: one has that many neighbours and itself.
FEWEST = generation.DENSITY_NEIGHBOURS + 1
# Real images that scores are over, at the most: distances grow as a square.
LARGEST_SET = 10_000
# Nearest pairs that the report shows.
PAIRS = 12
# Deviation of the blur, over the side of an image.
BLUR = 1 / 8
# Rounds of sampling, where the judge leaves images out.
_ROUNDS = 5

# (labels [N], indices [N]) -> uint8 [N, H, W, 3]
Sample = Callable[[np.ndarray, np.ndarray], np.ndarray]


def export_samples(
    config: ConfigDict,
    data: Data,
    writer: ArtifactWriter,
    sample: Sample,
    judge: Judge | None,
) -> str:
    """Writes `samples/`; to be called in all processes.

    Args:
      config: of the run.
      data: of the run.
      writer: keeps the manifest of what is written.
      sample: makes images.
      judge: gives features and probabilities; None leaves the scores out.

    Returns:
      A sentence for people.

    Raises:
      UserError: the judge leaves too few images.
    """
    known, rows = data.source.labelled, data.train_rows
    classes = data.source.classes
    labels, indices = wanted(known.labels[rows], config.generate.count)
    wanted_of_class = np.bincount(labels, minlength=len(classes))
    images = sample(labels, indices)
    dropped = 0
    if config.generate.filter and judge is not None:
        found = _filtered(config, data, sample, judge, labels, images)
        images, labels, indices, dropped = found
        if len(images) < FEWEST:
            raise UserError(
                f"the judge takes {len(images)} of "
                f"{len(images) + dropped:,} images for their class; set "
                "--config.generate.filter lower and give --export, or train "
                "longer"
            )
    lacking = wanted_of_class - np.bincount(labels, minlength=len(classes))
    names = folder_names(classes)
    files = [
        f"samples/{names[label]}/{index:05d}.png"
        for label, index in zip(labels, indices, strict=True)
    ]

    def write() -> str:
        _remove_stale(writer, set(files))
        for name, image in zip(files, images, strict=True):
            writer.image(name, image)
        manifest = {
            "classes": list(classes),
            "images": [
                {"file": name, "label": int(label)}
                for name, label in zip(files, labels, strict=True)
            ],
            "image_size": config.image_size,
            **sample_manifest.kept(config.generate),
            "left_out_by_judge": dropped,
            "lacking": {
                classes[label]: int(lacking[label])
                for label in np.flatnonzero(lacking)
            },
            "fold": data.fold,
            **{
                name: data.identity()[name]
                for name in ("folds_hash", "rows_hash")
            },
            "saw": known.ids[rows].tolist(),
        }
        path = writer.json(layout.SAMPLES, manifest)
        told = f"{len(files):,} images in {path.parent}"
        if manifest["lacking"]:
            told += (
                f", {lacking.sum():,} fewer than asked for, of "
                f"{(lacking > 0).sum()} classes: the judge took {len(files):,} "
                f"of {len(files) + dropped:,} in {_ROUNDS} rounds; set "
                "--config.generate.filter lower"
            )
        return told

    told = comm.run_on_primary(write)
    if judge is None:
        return (
            f"{told}; for scores, give --export with --config.generate.judge="
            "RUN, a classifier over the same fold"
        )
    scores = _scores(config, data, judge, images, labels, files)
    comm.run_on_primary(lambda: str(writer.json(layout.SAMPLE_SCORES, scores)))
    made = scores["sets"]["generated"]
    return (
        f"{told}; KID of {scores['images']:,} of them {made['kid']:.4f} (real "
        f"photos {scores['sets']['real']['kid']:.4f}, blurred "
        f"{scores['sets']['blurred']['kid']:.4f}), the judge agrees with "
        f"{scores['accuracy']:.1%} of all"
    )


def wanted(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the label of each image to make, and its index in its class.

    Args:
      labels: int [N], of the training rows: their shares are kept.
      count: how many in all; 0 takes N.
    """
    known, counts = np.unique(labels, return_counts=True)
    shares = counts / counts.sum() * (count or len(labels))
    whole = np.floor(shares).astype(int)
    # The largest remainders fill up.
    rest = (count or len(labels)) - whole.sum()
    whole[np.argsort(whole - shares, kind="stable")[:rest]] += 1
    found = np.repeat(known, whole).astype(np.int32)
    indices = np.concatenate([np.arange(n) for n in whole]).astype(np.int32)
    return found, indices


def folder_names(classes: tuple[str, ...]) -> list[str]:
    """Returns a folder for each class: its name, where that can be one."""
    plain = re.compile(r"[\w-][\w .-]{0,99}")
    fine = all(plain.fullmatch(name) for name in classes)
    # The names of the files beside the folders.
    taken = {Path(layout.SAMPLES).name, Path(layout.SAMPLE_SCORES).name}
    fine &= not taken.intersection(name.casefold() for name in classes)
    fine &= len({name.casefold() for name in classes}) == len(classes)
    if fine:
        return list(classes)
    return [f"class-{index}" for index in range(len(classes))]


def _filtered(
    config: ConfigDict,
    data: Data,
    sample: Sample,
    judge: Judge,
    labels: np.ndarray,
    images: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Replaces what the judge doubts, by images of higher indices."""
    known, counts = np.unique(labels, return_counts=True)
    missing = dict(zip(known.tolist(), counts.tolist(), strict=True))
    tried = dict.fromkeys(missing, 0)
    kept: list[tuple[int, int, np.ndarray]] = []
    dropped = 0
    for round_ in range(_ROUNDS):
        if round_:
            if not sum(missing.values()):
                break
            labels, indices = _next_to_try(missing, tried)
            images = sample(labels, indices)
        found = judge.look(images, data.mesh).probabilities
        sure = found[np.arange(len(labels)), labels] >= config.generate.filter
        dropped += int((~sure).sum())
        for label, image, good in zip(
            labels.tolist(), images, sure, strict=True
        ):
            if good:
                kept.append((label, tried[label], image))
                missing[label] -= 1
            tried[label] += 1
    kept.sort(key=lambda one: one[:2])
    labels = np.array([label for label, _, _ in kept], np.int32)
    indices = np.array([index for _, index, _ in kept], np.int32)
    shape = (-1, *images.shape[1:])
    images = np.array([image for *_, image in kept], np.uint8).reshape(shape)
    return images, labels, indices, dropped


def _next_to_try(
    missing: dict[int, int], tried: dict[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and indices of as many further images as are missing."""
    labels = np.repeat(list(missing), list(missing.values()))
    indices = np.concatenate(
        [tried[label] + np.arange(n) for label, n in missing.items()]
    )
    return labels.astype(np.int32), indices.astype(np.int32)


def _remove_stale(writer: ArtifactWriter, files: set[str]) -> None:
    """Deletes what earlier exports have left, also one that was killed."""
    (writer.workdir / layout.SAMPLE_SCORES).unlink(missing_ok=True)
    for path in (writer.workdir / "samples").glob("*/*.png"):
        name = f"samples/{path.parent.name}/{path.name}"
        if name not in files and path.stem.isdigit():
            path.unlink(missing_ok=True)
            # A class without an image would be no class of a folder of photos.
            with contextlib.suppress(OSError):
                path.parent.rmdir()


def _scores(
    config: ConfigDict,
    data: Data,
    judge: Judge,
    images: np.ndarray,
    labels: np.ndarray,
    files: list[str],
) -> dict[str, Any]:
    """What `samples/scores.json` holds."""
    known = data.source.labelled
    rng = np.random.default_rng(0)
    rows = _some(data.train_rows, 2 * LARGEST_SET, rng)
    rows, real = _real(data, rows)
    halves = data.halves(rows)
    first, second = np.flatnonzero(halves == 0), np.flatnonzero(halves == 1)
    # As many of each as there are of the fewest: all distances depend on that.
    count = min(len(first), len(second), len(images))
    first, second = _some(first, count, rng), _some(second, count, rng)
    chosen = _some(np.arange(len(images)), count, rng)
    real_labels = known.labels[rows]
    gaussian = pca_gaussian.sample(
        real, real_labels, real_labels[second], seed=0
    )
    train = judge.look(real, data.mesh)
    made = judge.look(images, data.mesh)
    val_rows = _some(data.val_rows, LARGEST_SET, rng)
    val_rows, held_out = _real(data, val_rows)
    val = judge.look(held_out, data.mesh)
    blurred = judge.look(blur(real[second]), data.mesh)
    baseline = judge.look(gaussian, data.mesh)
    reference = train.features[first]

    def compared(opinion: Opinion, truth: np.ndarray) -> dict[str, Any]:
        kid = generation.kernel_distance(reference, opinion.features)
        shares = generation.manifold(reference, opinion.features)
        right = opinion.probabilities.argmax(1) == truth
        return {
            "kid": kid.mean,
            "kid_std": kid.std,
            "frechet": generation.frechet_distance(reference, opinion.features),
            **shares._asdict(),
            "accuracy": float(right.mean()),
        }

    def part(opinion: Opinion, index: np.ndarray) -> Opinion:
        return Opinion(opinion.features[index], opinion.probabilities[index])

    truth = real_labels[second]
    near = generation.memorised(train.features, made.features, val.features)
    order = np.argsort(near.distance)[:PAIRS]
    right = made.probabilities.argmax(1) == labels
    return {
        "judge": judge.about,
        "filter": config.generate.filter,
        "folds_hash": data.folds_hash,
        "fold": data.fold,
        "images": count,
        "sets": {
            "generated": compared(part(made, chosen), labels[chosen]),
            "real": compared(part(train, second), truth),
            "gaussian": compared(baseline, truth),
            "blurred": compared(blurred, truth),
        },
        "held_out_accuracy": float(
            (val.probabilities.argmax(1) == known.labels[val_rows]).mean()
        ),
        "accuracy": float(right.mean()),
        "accuracy_of_class": {
            data.source.classes[label]: float(right[labels == label].mean())
            for label in np.unique(labels)
        },
        "memorised": {
            "share": near.share,
            "median_distance": float(np.median(near.distance)),
            "held_out_median_distance": near.held_out,
        },
        "nearest": [
            {
                "file": files[index],
                "id": str(known.ids[rows[near.nearest[index]]]),
                "distance": float(near.distance[index]),
            }
            for index in order
        ],
    }


def _real(data: Data, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those of the rows that can be read, and the squares that the generator
    learns: uint8 [N, size, size, 3]."""
    kept, images = [], []
    for batch in data.rows(data.source.labelled, rows, ("square",)):
        needed = {name: batch[name] for name in ("image", "row", "bad")}
        whole = sharding.to_host(sharding.put_batch(needed, data.mesh))
        fine = (whole["row"] >= 0) & ~whole["bad"]
        kept.append(whole["row"][fine])
        images.append(whole["image"][fine, 0])
    return np.concatenate(kept), np.concatenate(images)


def blur(images: np.ndarray) -> np.ndarray:
    """Blurs uint8 [N, H, W, 3] by an eighth of their height."""
    radius = BLUR * images.shape[1]
    return np.stack(
        [
            np.asarray(
                Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius))
            )
            for image in images
        ]
    )


def _some(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """As many of the rows, in their order."""
    if len(rows) <= count:
        return rows
    return np.sort(rng.choice(rows, count, replace=False))
