"""Scores of a segmentation, from one confusion matrix of pixels per image.

Masks are integers [H, W], the classes in [0, C). A pixel whose label is the
ignore index counts nowhere, whatever is predicted there. Matrices have true
classes as rows and predictions as columns, as in `metrics.classification`.

Two ways to average over images are in use and differ by tens of points, so
both are given and named. `mean_dice` and `mean_iou` are accumulated: counts
are summed over the data set, then there is one ratio per class (mmseg's mDice
and mIoU). `image_dice` and `image_iou` are means over images of each image's
mean over its own classes. A class counts where label or prediction has it;
where neither has, it is left out, neither 0 nor 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64, Integer, Real

from metrics import classification

# Dice of two sets is the F1 of one against the other.
dice_from_confusion = classification.f1_from_confusion
mean_dice_from_confusion = classification.macro_f1_from_confusion
pixel_accuracy_from_confusion = classification.accuracy_from_confusion

# Of an image's diagonal: how far from its edge a boundary reaches.
BOUNDARY_SHARE = 0.02


def confusion_matrix(
    labels: Integer[np.ndarray, "H W"],
    predictions: Integer[np.ndarray, "H W"],
    num_classes: int,
    ignore_index: int | None = None,
) -> Int64[np.ndarray, "C C"]:
    """Returns pixel counts: row = true class, column = predicted class.

    Args:
      labels: classes of the pixels.
      predictions: in [0, C), also where labels are ignored.
      num_classes: C.
      ignore_index: label of pixels that count nowhere; None has none.
    """
    labels, predictions = labels.ravel(), predictions.ravel()
    if ignore_index is not None:
        counted = labels != ignore_index
        labels, predictions = labels[counted], predictions[counted]
    return classification.confusion_matrix(labels, predictions, num_classes)


def iou_from_confusion(
    confusion: Real[np.ndarray, "*batch C C"],
) -> Float64[np.ndarray, "*batch C"]:
    """Returns the IoU of each class: TP / (TP + FP + FN).

    NaN for a class that neither labels nor predictions have.
    """
    dice = dice_from_confusion(confusion)
    return dice / (2 - dice)


def mean_iou_from_confusion(
    confusion: Real[np.ndarray, "*batch C C"],
) -> Float64[np.ndarray, "*batch"]:
    """Returns the mean IoU over the classes that occur; 0 without pixels."""
    return classification.mean_of_present(iou_from_confusion(confusion))


def scores(confusions: Int[np.ndarray, "N C C"]) -> dict[str, float]:
    """Returns the scores of N images, by name; 0 where there is no pixel.

    Images without a counted pixel are left out of the means over images.
    """
    total = confusions.sum(axis=0)
    seen = confusions[confusions.sum(axis=(1, 2)) > 0]
    per_image = {
        "image_dice": mean_dice_from_confusion(seen),
        "image_iou": mean_iou_from_confusion(seen),
    }
    return {
        "mean_dice": float(mean_dice_from_confusion(total)),
        "mean_iou": float(mean_iou_from_confusion(total)),
        **{
            name: float(values.mean()) if len(values) else 0.0
            for name, values in per_image.items()
        },
        "pixel_accuracy": float(pixel_accuracy_from_confusion(total)),
    }


def bootstrap_interval(
    counts: Int[np.ndarray, "N ..."],
    score: Callable[[np.ndarray], np.ndarray],
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of a score over images.

    Images are drawn, not pixels: those of one image are no independent
    evidence. Draws whose score is NaN, as that of a class which none of them
    has, are left out.

    Args:
      counts: of each image, such as its confusion matrix.
      score: maps sums over images, [B, *shape], to [B].
      level: share of the draws inside the interval.
      draws: number of resamples, B.
      seed: of the resampling.

    Returns:
      (low, high); (0, 0) without images, or without a score.
    """
    images = len(counts)
    if not images:
        return 0.0, 0.0
    rng = np.random.default_rng(seed)
    share = np.full(images, 1 / images)
    drawn = rng.multinomial(images, share, size=draws).astype(np.float64)
    # As matrices of float64: exact up to 2^53 pixels, and a fast product.
    sums = drawn @ counts.reshape(images, -1).astype(np.float64)
    values = score(sums.reshape(draws, *counts.shape[1:]))
    tail = (1 - level) / 2
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 0.0
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def boundary(
    mask: Bool[np.ndarray, "H W"], distance: int
) -> Bool[np.ndarray, "H W"]:
    """Returns the pixels of a mask that lie within `distance` of its edge.

    The mask minus its erosion by a 3x3 square, `distance` times; outside the
    image nothing is set.
    """
    side = 2 * distance + 1
    padded = np.pad(mask, distance + 1)[:-1, :-1]
    sums = padded.cumsum(0, dtype=np.int64).cumsum(1)
    inside = sums[side:, side:] - sums[:-side, side:]
    inside -= sums[side:, :-side] - sums[:-side, :-side]
    return mask & (inside < side * side)


def boundary_counts(
    labels: Integer[np.ndarray, "H W"],
    predictions: Integer[np.ndarray, "H W"],
    num_classes: int,
    ignore_index: int | None = None,
) -> Int64[np.ndarray, "C 2"]:
    """Returns sizes of intersection and union of the classes' boundaries.

    Boundary IoU (Cheng et al. 2021, arXiv:2103.16562). An ignored pixel is
    taken to continue what it touches, so it makes no boundary, and counts
    nowhere.

    Args:
      labels: classes of the pixels.
      predictions: in [0, C).
      num_classes: C.
      ignore_index: label of pixels that count nowhere; None has none.
    """
    distance = max(1, round(BOUNDARY_SHARE * float(np.hypot(*labels.shape))))
    ignored = np.zeros(labels.shape, bool)
    if ignore_index is not None:
        ignored = labels == ignore_index
    counts = np.zeros((num_classes, 2), np.int64)
    for number in range(num_classes):
        true, found = (
            boundary((mask == number) | ignored, distance) & ~ignored
            for mask in (labels, predictions)
        )
        counts[number] = (true & found).sum(), (true | found).sum()
    return counts


class ImageCounts:
    """Counts of images with masks, taken one after the other.

    Args:
      num_classes: C.
      ignore_index: label of pixels that count nowhere; None has none.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = None):
        self._size = num_classes, ignore_index
        self._ids: list[str] = []
        self._confusions: list[np.ndarray] = []
        self._boundaries: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._ids)

    def add(
        self,
        image_id: str,
        labels: Integer[np.ndarray, "H W"],
        predictions: Integer[np.ndarray, "H W"],
    ) -> None:
        """Counts an image."""
        pair = labels, predictions
        self._ids.append(image_id)
        self._confusions.append(confusion_matrix(*pair, *self._size))
        self._boundaries.append(boundary_counts(*pair, *self._size))

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns `ids` [N], `confusion` [N, C, C] and `boundary` [N, C, 2]."""
        return {
            "ids": np.array(self._ids),
            "confusion": np.stack(self._confusions),
            "boundary": np.stack(self._boundaries),
        }


def summary(confusions: Int[np.ndarray, "N C C"]) -> str:
    """Returns the scores of N images in words, with an interval."""
    found = scores(confusions)
    low, high = bootstrap_interval(confusions, mean_dice_from_confusion)
    return (
        f"mDice {found['mean_dice']:.4f} ({low:.4f} to {high:.4f}), mIoU "
        f"{found['mean_iou']:.4f}; per image {found['image_dice']:.4f} and "
        f"{found['image_iou']:.4f}"
    )


def boundary_iou(
    counts: Real[np.ndarray, "*batch C 2"],
) -> Float64[np.ndarray, "*batch C"]:
    """Returns the boundary IoU of each class from summed `boundary_counts`.

    NaN for a class without a boundary in labels and predictions.
    """
    union = np.asarray(counts[..., 1], np.float64)
    return np.divide(
        counts[..., 0],
        union,
        out=np.full(union.shape, np.nan),
        where=union > 0,
    )


def mean_boundary_iou(
    counts: Real[np.ndarray, "*batch C 2"],
) -> Float64[np.ndarray, "*batch"]:
    """Returns the mean boundary IoU over the classes that occur."""
    return classification.mean_of_present(boundary_iou(counts))


def class_shares(
    pixels: Int[np.ndarray, "N C"],
) -> tuple[Float64[np.ndarray, " C"], Float64[np.ndarray, " C"]]:
    """Returns how often classes occur.

    Args:
      pixels: of each class in each image, ignored ones left out.

    Returns:
      Of each class its share of all pixels, and its share of the pixels of
      the images that hold it; 0 for a class that none holds.
    """
    total = pixels.sum(axis=0).astype(np.float64)
    around = ((pixels > 0) * pixels.sum(axis=1, keepdims=True)).sum(axis=0)
    return total / max(total.sum(), 1.0), total / np.maximum(around, 1)


def frequency_weights(
    share: Float[np.ndarray, " C"],
    share_where_present: Float[np.ndarray, " C"],
    how: str,
) -> Float64[np.ndarray, " C"]:
    """Returns class weights from `class_shares`.

    `median`: median frequency balancing (Eigen and Fergus 2015; SegNet), the
    median over the classes of their shares where present divided by each.
    `sqrt_median`: its square root. `inverse`: one over the share of all
    pixels, scaled to a mean pixel of weight 1.

    Returns:
      float64 [C]; 0 for a class that does not occur.
    """
    weights = np.zeros(len(share))
    present = share > 0
    if how == "inverse":
        weights[present] = 1 / (share[present] * present.sum())
        return weights
    within = share_where_present[present]
    weights[present] = np.median(within) / within
    return np.sqrt(weights) if how == "sqrt_median" else weights


WEIGHTINGS: Sequence[str] = ("median", "sqrt_median", "inverse")
