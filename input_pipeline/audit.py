"""What is wrong with a data folder, found before a training stumbles on it.

Every image is decoded once, as training would. A finding is one row of a csv
that a person can sort; what would be lost, an image that cannot be read or a
class that cannot be divided into folds, makes the audit fail.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from input_pipeline import mask_audit, near_copies, pair_audit
from input_pipeline.findings import (
    LONGEST_RATIO,
    LOSSES,
    SIZE_FACTOR,
    Finding,
    lines,
)
from input_pipeline.folds import MIN_PER_CLASS
from input_pipeline.inspection import Inspected, compares_identities, inspect
from input_pipeline.sources.base import Source
from input_pipeline.sources.cleaned import CleanedExamples
from input_pipeline.sources.labels import doubts

# Medians of training and test images further apart are two kinds of images.
SPLIT_FACTOR = 2.0

# A split has impulse noise where so many pixels stand alone, in black
# and in white; images under 16 px a side are too coarse to tell.
LONE_SHARE = 0.001


def audit(source: Source, folds: int) -> list[Finding]:
    """Decodes every image and lists what is wrong; see `findings`.

    Args:
      source: the data.
      folds: how many folds the labelled images are to be divided into.
    """
    return findings(source, inspect(source), folds)


def findings(
    source: Source, images: Sequence[Inspected], folds: int
) -> list[Finding]:
    """Lists what is wrong.

    Args:
      source: the data.
      images: from `inspect`.
      folds: how many folds the labelled images are to be divided into.

    Returns:
      The findings: losses first, then by split and row.
    """
    splits = source.splits
    known = images[: len(splits)]
    found = [
        *_bad(images),
        *_turned(known, source),
        *_left_out(source),
        *_small_classes(source, known, folds),
        *_copies(images, source),
        *_near_copies(images, source),
        *_sizes(images),
        *_noise(images, source),
        *_doubtful_labels(source),
    ]
    if source.mask_pixels is not None:
        found += mask_audit.mask_findings(source, splits)
    return sorted(found, key=lambda finding: finding.problem not in LOSSES)


def _bad(images: Sequence[Inspected]) -> Iterator[Finding]:
    for image in images:
        decoded = image.decoded
        if decoded.reason:
            kind = "test" if image.split == "test" else "training"
            yield image.finding(f"bad {kind} image", decoded.reason)
        if decoded.transparent:
            yield image.finding("transparent", "no pixel of it can be seen")
        if decoded.repaired:
            yield image.finding("repaired", decoded.repaired)


def _turned(images: Sequence[Inspected], source: Source) -> Iterator[Finding]:
    """Photos whose mask may lie another way, which no size tells."""
    for image in images if source.mask_pixels is not None else ():
        if image.decoded.turned:
            yield image.finding("turned photo", "see whether its mask is, too")


def _left_out(source: Source) -> Iterator[Finding]:
    for file in source.left_out:
        detail = file.detail or Path(file.path).suffix or "no ending"
        yield Finding(file.split, "", file.path, file.problem, detail)


def _small_classes(
    source: Source, images: Sequence[Inspected], folds: int
) -> Iterator[Finding]:
    """Classes that a stratified split cannot or can hardly divide."""
    # Images of such a class count to another one; and an identity of one
    # picture makes negative pairs.
    if source.mask_pixels is not None or compares_identities(source):
        return
    listed = Counter(image.label for image in images)
    readable = Counter(i.label for i in images if not i.decoded.reason)
    for label, name in enumerate(source.classes):
        detail = f"class '{name}' has {readable[label]} images to train on"
        too_few = listed[label] < MIN_PER_CLASS and source.groups is None
        if too_few or not readable[label]:
            yield Finding("train", "", "", "class too small", detail)
        elif readable[label] < folds:
            detail += f", in {folds} folds"
            yield Finding("train", "", "", "class misses folds", detail)


def _copies(images: Sequence[Inspected], source: Source) -> Iterator[Finding]:
    """Images of the same pixels, whatever their files look like."""
    masks = source.mask_digests is not None
    alike = defaultdict(list)
    for image in images:
        if not image.decoded.reason:
            alike[image.decoded.digest].append(image)
    for first, *others in alike.values():
        for image in others:
            detail = f"same pixels as {first.split} id '{first.id}'"
            problem = "copy"
            if image.split != first.split:
                problem = "copy across splits"
            elif image.split == "test" and source.test_pairs is not None:
                continue  # One picture may be in several pairs.
            elif image.label != first.label:
                problem = "two masks" if masks else "two labels"
                if compares_identities(source):
                    problem = pair_audit.copy_problem(image.label, first.label)
            yield image.finding(problem, detail, first)


def _near_copies(
    images: Sequence[Inspected], source: Source
) -> Iterator[Finding]:
    """Images that look like others, of another split or perhaps fold."""
    groups = [f"{image.split} split" for image in images]
    if source.given_folds is None:  # Folds may part any two that may be parted.
        rows = range(len(source.labelled))
        groups[: len(rows)] = rows if source.groups is None else source.groups
    shown = [
        (image, group)
        for image, group in zip(images, map(str, groups), strict=True)
        if image.decoded.thumbnail is not None
    ]
    if not shown:
        return
    images, groups = zip(*shown, strict=True)
    matches = near_copies.find(
        np.stack([image.decoded.thumbnail for image in images]),
        groups,
        [image.decoded.digest for image in images],
    )
    for image, match in zip(images, matches, strict=True):
        if match is None:
            continue
        other = images[match.row]
        detail = f"looks like {other.split} id '{other.id}'"
        if match.orientation:
            detail += f" {match.orientation}"
        problem = "near copy"
        if image.split != other.split:
            problem = "near copy across splits"
        detail += f" ({match.correlation:.3f})"
        yield image.finding(problem, detail, other)


def _sizes(images: Sequence[Inspected]) -> Iterator[Finding]:
    medians = {}
    for split in ("train", "val", "test"):
        readable = [
            image
            for image in images
            if image.split == split and not image.decoded.reason
        ]
        if not readable:
            continue
        sizes = [(i.decoded.width, i.decoded.height) for i in readable]
        median = medians[split] = np.median(sizes, axis=0)
        for image, size in zip(readable, np.array(sizes), strict=True):
            detail = f"{_by(size)}, the median is {_by(median)}"
            if max(size) > LONGEST_RATIO * min(size):
                yield image.finding("long and narrow", detail)
            elif _factor(size, median) > SIZE_FACTOR:
                yield image.finding("unusual size", detail)
    if {"train", "test"} <= set(medians):
        train, test = medians["train"], medians["test"]
        if _factor(train, test) > SPLIT_FACTOR:
            detail = f"median {_by(train)} in training, {_by(test)} in test"
            yield Finding("test", "", "", "sizes differ", detail)


def _factor(one: np.ndarray, other: np.ndarray) -> float:
    """How many times the longer or shorter, in the worse direction."""
    return float(np.max(np.maximum(one / other, other / one)))


def _by(size: np.ndarray) -> str:
    return f"{size[0]:g}x{size[1]:g}"


def _noise(images: Sequence[Inspected], source: Source) -> Iterator[Finding]:
    """Splits of which a share of the pixels is impulse noise."""
    cleaned = isinstance(source.labelled, CleanedExamples)
    for split in ("train", "val", "test"):
        of_split = [
            image.decoded
            for image in images
            if image.split == split and not image.decoded.reason
        ]
        noise = [decoded.noise for decoded in of_split]
        lone = [decoded.lone for decoded in of_split]
        if not noise or np.mean(lone) < LONE_SHARE:
            continue
        left = np.mean([decoded.noise_left for decoded in of_split])
        detail = (
            f"{np.mean(noise):.2%} of the pixels, in "
            f"{np.count_nonzero(noise):,} of {len(noise):,} images; "
            f"{left:.2%} after cleaning, which is {'on' if cleaned else 'off'}"
        )
        yield Finding(split, "", "", "impulse noise", detail)


def _doubtful_labels(source: Source) -> Iterator[Finding]:
    for doubt in doubts(source.classes):
        yield Finding("train", "", "", doubt.problem, str(doubt))


def summary(source: Source, findings: Sequence[Finding]) -> list[str]:
    """The data in a line, more of masks and identities, and the findings."""
    test = 0 if source.test is None else len(source.test)
    splits = source.splits
    images = f"{len(splits):,} labelled images"
    if count := int((splits == "val").sum()):
        images = (
            f"{len(splits) - count:,} images to train, {count:,} to validate"
        )
    what = "identities" if compares_identities(source) else "classes"
    heading = (
        f"'{source.name}': {images} in {len(source.classes)} {what}, "
        f"{test:,} to predict"
    )
    shares = []
    if source.mask_pixels is not None:
        shares = mask_audit.share_lines(source, splits)
    elif compares_identities(source):
        shares = pair_audit.summary_lines(source)
    odd = lines(findings) or [
        "  every image can be read, and nothing else is odd"
    ]
    return [heading, *shares, *odd]
