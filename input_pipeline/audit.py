"""What is wrong with a data folder, found before a training stumbles on it.

Every image is decoded once, as training would. A finding is one row of a csv
that a person can sort; what would be lost, an image that cannot be read or a
class that cannot be divided into folds, makes the audit fail.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from core import atomic_files
from input_pipeline import parallel_scan
from input_pipeline.decoding import (
    REPAIRED,
    BadImage,
    is_transparent,
    open_image,
    upright_rgb,
)
from input_pipeline.folds import MIN_PER_CLASS
from input_pipeline.sources.base import LEFT_OUT, Examples, Source
from input_pipeline.sources.labels import doubts

# A side so many times longer or shorter than the split's median is unusual.
SIZE_FACTOR = 4.0

# Of a longer image, a crop shows less than a quarter.
LONGEST_RATIO = 4.0

# Medians of training and test images further apart are two kinds of images.
SPLIT_FACTOR = 2.0

# Problems that lose something, and what each means for a run.
LOSSES = {
    "bad training image": "cannot be read: left out of training",
    "bad test image": "cannot be read: keeps its row with the class prior",
    "class too small": "cannot be divided into folds: training refuses",
    **LEFT_OUT,
}
_IGNORED = {"no image": LOSSES.pop("no image")}

# Problems to check by eye, and what they mean.
DOUBTS = {
    "copy": "has the same pixels as another image of its split",
    "copy across splits": "is a test image with the pixels of a training image",
    "two labels": "has the same pixels as an image of another class",
    "unusual size": f"has a side {SIZE_FACTOR:g} times off the median",
    "long and narrow": f"is more than {LONGEST_RATIO:g} times longer than wide",
    "sizes differ": "medians of training and test images are far apart",
    "class misses folds": "has fewer images than there are folds",
    "class in no mask": "is listed, but no pixel has it: cannot be learned",
    "transparent": "is wholly transparent: taken as white",
    "labels alike": "differs from another class only in case or spaces",
    "missing label": "is how a missing value is written",
    "repaired": "is damaged, but all of its pixels are read",
    **_IGNORED,
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
      split: `train` or `test`.
      id: of the image; empty for a finding about a class or a split.
      file: its path, where it has one.
      problem: a key of `LOSSES` or `DOUBTS`.
      detail: the reason, or which other image.
    """

    split: str
    id: str
    file: str
    problem: str
    detail: str


@dataclasses.dataclass(frozen=True)
class _Decoded:
    """Size and hash of an image's pixels, or the reason why it fails.

    `repaired` is what is wrong with the file all the same.
    """

    reason: str = ""
    width: int = 0
    height: int = 0
    digest: bytes = b""
    transparent: bool = False
    repaired: str = ""


def audit(source: Source, folds: int) -> list[Finding]:
    """Decodes every image and lists what is wrong.

    Args:
      source: the data.
      folds: how many folds the labelled images are to be divided into.

    Returns:
      The findings: losses first, then by split and row.
    """
    splits = {"train": source.labelled}
    if source.test is not None:
        splits["test"] = source.test
    decoded = {
        split: list(
            parallel_scan.every_image(
                _inspect, images, np.arange(len(images)), f"{split} images"
            )
        )
        for split, images in splits.items()
    }
    found = [
        *_bad(splits, decoded),
        *_left_out(source),
        *_small_classes(source, decoded["train"], folds),
        *_copies(splits, decoded),
        *_sizes(splits, decoded),
        *_doubtful_labels(source),
    ]
    return sorted(found, key=lambda finding: finding.problem not in LOSSES)


def _inspect(images: Examples, row: int) -> _Decoded:
    try:
        image = open_image(images.read(row)["image"])
        pixels = np.asarray(upright_rgb(image))
    except BadImage as error:
        return _Decoded(reason=str(error))
    height, width, _ = pixels.shape
    digest = hashlib.blake2b(f"{width} {height} ".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels))
    return _Decoded(
        "",
        width,
        height,
        digest.digest(),
        transparent=is_transparent(image),
        repaired=image.info.get(REPAIRED, ""),
    )


def _finding(
    splits: dict[str, Examples], split: str, row: int, problem: str, detail: str
) -> Finding:
    images = splits[split]
    return Finding(
        split, str(images.ids[row]), images.path(row), problem, detail
    )


def _bad(
    splits: dict[str, Examples], decoded: dict[str, list[_Decoded]]
) -> Iterator[Finding]:
    problems = {"train": "bad training image", "test": "bad test image"}
    for split, found in decoded.items():
        for row, image in enumerate(found):
            if image.reason:
                yield _finding(
                    splits, split, row, problems[split], image.reason
                )
            if image.transparent:
                detail = "no pixel of it can be seen"
                yield _finding(splits, split, row, "transparent", detail)
            if image.repaired:
                yield _finding(splits, split, row, "repaired", image.repaired)


def _left_out(source: Source) -> Iterator[Finding]:
    for file in source.left_out:
        detail = Path(file.path).suffix or "no ending"
        yield Finding(file.split, "", file.path, file.problem, detail)


def _small_classes(
    source: Source, decoded: list[_Decoded], folds: int
) -> Iterator[Finding]:
    """Classes that a stratified split cannot or can hardly divide."""
    if source.mask_pixels is not None:
        for label in np.flatnonzero(source.mask_pixels.sum(axis=0) == 0):
            detail = f"class '{source.classes[label]}' is in no mask"
            yield Finding("train", "", "", "class in no mask", detail)
        return
    listed = Counter(source.labelled.labels.tolist())
    readable = Counter(
        label
        for label, image in zip(
            source.labelled.labels.tolist(), decoded, strict=True
        )
        if not image.reason
    )
    for label, name in enumerate(source.classes):
        detail = f"class '{name}' has {readable[label]} images to train on"
        too_few = listed[label] < MIN_PER_CLASS and source.groups is None
        if too_few or not readable[label]:
            yield Finding("train", "", "", "class too small", detail)
        elif readable[label] < folds:
            detail += f", in {folds} folds"
            yield Finding("train", "", "", "class misses folds", detail)


def _copies(
    splits: dict[str, Examples], decoded: dict[str, list[_Decoded]]
) -> Iterator[Finding]:
    """Images of the same pixels, whatever their files look like."""
    rows_of = defaultdict(list)
    for split, found in decoded.items():
        for row, image in enumerate(found):
            if not image.reason:
                rows_of[image.digest].append((split, row))
    for same in rows_of.values():
        (first_split, first), *others = same
        for split, row in others:
            images, original = splits[split], splits[first_split]
            detail = f"same pixels as {first_split} id '{original.ids[first]}'"
            problem = "copy"
            if split != first_split:
                problem = "copy across splits"
            elif (
                split == "train" and images.labels[row] != images.labels[first]
            ):
                problem = "two labels"
            yield _finding(splits, split, row, problem, detail)


def _sizes(
    splits: dict[str, Examples], decoded: dict[str, list[_Decoded]]
) -> Iterator[Finding]:
    medians = {}
    for split, found in decoded.items():
        sizes = np.array(
            [(image.width, image.height) for image in found if not image.reason]
        )
        if not len(sizes):
            continue
        median = medians[split] = np.median(sizes, axis=0)
        for row, image in enumerate(found):
            if image.reason:
                continue
            size = np.array([image.width, image.height])
            detail = (
                f"{image.width}x{image.height}, the median is {_by(median)}"
            )
            if max(size) > LONGEST_RATIO * min(size):
                yield _finding(splits, split, row, "long and narrow", detail)
            elif _factor(size, median) > SIZE_FACTOR:
                yield _finding(splits, split, row, "unusual size", detail)
    if len(medians) == 2:
        train, test = medians["train"], medians["test"]
        if _factor(train, test) > SPLIT_FACTOR:
            detail = f"median {_by(train)} in training, {_by(test)} in test"
            yield Finding("test", "", "", "sizes differ", detail)


def _factor(one: np.ndarray, other: np.ndarray) -> float:
    """How many times the longer or shorter, in the worse direction."""
    return float(np.max(np.maximum(one / other, other / one)))


def _by(size: np.ndarray) -> str:
    return f"{size[0]:g}x{size[1]:g}"


def _doubtful_labels(source: Source) -> Iterator[Finding]:
    for doubt in doubts(source.classes):
        yield Finding("train", "", "", doubt.problem, str(doubt))


def write_findings(path: str | Path, findings: Iterable[Finding]) -> None:
    """Writes the findings as a csv, one row each, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in dataclasses.fields(Finding)]
    writer.writerow(names)
    for finding in findings:
        writer.writerow([getattr(finding, name) for name in names])
    atomic_files.write_text(path, text.getvalue())


def summary(source: Source, findings: list[Finding]) -> list[str]:
    """The findings in a few lines, one for each kind."""
    test = 0 if source.test is None else len(source.test)
    lines = [
        f"'{source.name}': {len(source.labelled):,} labelled images in "
        f"{len(source.classes)} classes, {test:,} to predict"
    ]
    by_problem = defaultdict(list)
    for finding in findings:
        by_problem[finding.problem].append(finding)
    for problem, meaning in (LOSSES | DOUBTS).items():
        if found := by_problem[problem]:
            lines.append(
                f"  {len(found):,} × {problem}: {meaning} "
                f"(first: {_first(found[0])})"
            )
    if not findings:
        lines.append("  every image can be read, and nothing else is odd")
    return lines


def _first(finding: Finding) -> str:
    where = finding.file or finding.id
    return f"{where}: {finding.detail}" if where else finding.detail


def loses(findings: Iterable[Finding]) -> bool:
    """Whether something would be left out."""
    return any(finding.problem in LOSSES for finding in findings)
