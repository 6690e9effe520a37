"""Segmentation scores beside scikit-learn, SciPy and sums done by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage
from sklearn import metrics

from metrics import segmentation

C = 4


def random_masks(seed: int, shape=(9, 7)) -> tuple[np.ndarray, np.ndarray]:
    """Labels with ignored pixels (255), and predictions half right."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(C, shape, p=[0.6, 0.25, 0.15, 0]).astype(np.uint8)
    guesses = rng.integers(0, C, shape)
    predictions = np.where(rng.random(shape) < 0.5, labels, guesses)
    labels[rng.random(shape) < 0.1] = 255
    return labels, predictions


@pytest.mark.parametrize("seed", range(4))
def test_accumulated_scores_are_scikit_learns_over_the_counted_pixels(seed):
    pairs = [random_masks(10 * seed + image) for image in range(3)]
    labels, predictions = (
        np.concatenate([pair[side].ravel() for pair in pairs])
        for side in (0, 1)
    )
    counted = labels != 255
    labels, predictions = labels[counted], predictions[counted]
    present = sorted({*labels.tolist(), *predictions.tolist()})
    confusions = np.stack(
        [segmentation.confusion_matrix(*pair, C, 255) for pair in pairs]
    )
    found = segmentation.scores(confusions)
    kwargs = {"labels": present, "average": "macro", "zero_division": 0}
    assert found["mean_dice"] == pytest.approx(
        metrics.f1_score(labels, predictions, **kwargs)
    )
    assert found["mean_iou"] == pytest.approx(
        metrics.jaccard_score(labels, predictions, **kwargs)
    )
    assert found["pixel_accuracy"] == pytest.approx(
        metrics.accuracy_score(labels, predictions)
    )


def test_constant_background_under_each_convention():
    # Two images, each background and one of two defects; all is called
    # background, whose Dice is then .95.
    share = 0.95 / (2 - 0.95)
    background, defect = round(20_000 * share), round(20_000 * (1 - share))
    confusions = np.zeros((2, 3, 3), np.int64)
    confusions[:, 0, 0] = background
    confusions[0, 1, 0] = confusions[1, 2, 0] = defect
    found = segmentation.scores(confusions)
    assert found["mean_dice"] == pytest.approx(0.95 / 3, abs=1e-4)  # .32
    assert found["image_dice"] == pytest.approx(0.95 / 2, abs=1e-4)  # .48
    # What other tools say of the same: a class that an image has not got
    # counts as 1 (smp, macro-imagewise) or as 0.
    dice = segmentation.dice_from_confusion(confusions)
    assert np.nan_to_num(dice, nan=1.0).mean() == pytest.approx(0.65, abs=1e-4)
    assert np.nan_to_num(dice, nan=0.0).mean() == pytest.approx(0.3167, 1e-3)


def test_a_class_that_is_only_predicted_scores_zero_and_an_absent_one_nothing():
    labels = np.zeros((2, 2), np.uint8)
    predictions = np.array([[0, 0], [0, 1]])
    confusion = segmentation.confusion_matrix(labels, predictions, 3)
    np.testing.assert_allclose(
        segmentation.iou_from_confusion(confusion), [0.75, 0, np.nan]
    )
    assert segmentation.mean_iou_from_confusion(confusion) == 0.375


def test_scores_of_nothing_are_zero():
    empty = np.zeros((0, 3, 3), np.int64)
    assert set(segmentation.scores(empty).values()) == {0.0}
    ignored = np.full((4, 4), 255)
    confusion = segmentation.confusion_matrix(ignored, ignored * 0, 3, 255)
    assert set(segmentation.scores(confusion[None]).values()) == {0.0}
    assert segmentation.bootstrap_interval(
        empty, segmentation.mean_iou_from_confusion
    ) == (0.0, 0.0)


@given(
    arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2)),
    st.integers(1, 4),
)
def test_boundary_is_the_mask_minus_scipys_erosion(mask, distance):
    eroded = ndimage.binary_erosion(
        mask, np.ones((3, 3)), iterations=distance, border_value=0
    )
    np.testing.assert_array_equal(
        segmentation.boundary(mask, distance), mask & ~eroded
    )


def test_boundary_iou_of_a_square_moved_by_one_pixel():
    labels = np.zeros((40, 40), np.uint8)
    labels[10:20, 10:20] = 1
    moved = np.roll(labels, 1, axis=1)
    counts = segmentation.boundary_counts(labels, moved, 2)
    # d = round(.02 * 56.6) = 1: rings of 36 pixels that share two rows of 9,
    # less the corners that only one of them has.
    assert counts[1].tolist() == [18, 54]
    assert segmentation.boundary_iou(counts)[1] == pytest.approx(18 / 54)
    same = segmentation.boundary_counts(labels, labels, 2)
    assert segmentation.mean_boundary_iou(same) == 1.0


def test_an_ignored_region_makes_no_boundary():
    labels = np.ones((40, 40), np.uint8)
    labels[:, 30:] = 255
    counts = segmentation.boundary_counts(
        labels, np.ones((40, 40), int), 2, 255
    )
    frame = 2 * 30 + 38  # Top, bottom and left; none along the void.
    assert counts[1].tolist() == [frame, frame]


def test_bootstrap_draws_images():
    rng = np.random.default_rng(0)
    hits = rng.binomial(1000, 0.7, size=50)
    confusions = np.zeros((50, 2, 2), np.int64)
    confusions[:, 0, 0], confusions[:, 0, 1] = hits, 1000 - hits
    score = segmentation.pixel_accuracy_from_confusion
    low, high = segmentation.bootstrap_interval(confusions, score)
    center = score(confusions.sum(0))
    error = (hits / 1000).std(ddof=1) / np.sqrt(50)
    assert low < center < high
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.15)


def test_draws_without_the_class_are_left_out_of_its_interval():
    confusions = np.zeros((40, 2, 2), np.int64)
    confusions[:, 0, 0] = 100
    confusions[:2, 1, 1] = 10  # Perfect, in two images of forty.
    interval = segmentation.bootstrap_interval(
        confusions, lambda c: segmentation.dice_from_confusion(c)[:, 1]
    )
    assert interval == (1.0, 1.0)


def test_frequency_weights_by_hand():
    # Class 0 is 90 of 100 pixels in both images, class 1 10 in the first.
    pixels = np.array([[90, 10, 0], [100, 0, 0]])
    shares = segmentation.class_shares(pixels)
    median = segmentation.frequency_weights(*shares, "median")
    frequencies = np.array([190 / 200, 10 / 100])
    expected = np.median(frequencies) / frequencies
    np.testing.assert_allclose(median, [*expected, 0])
    np.testing.assert_allclose(
        segmentation.frequency_weights(*shares, "sqrt_median"), np.sqrt(median)
    )
    inverse = segmentation.frequency_weights(*shares, "inverse")
    assert (inverse[:2] * [190 / 200, 10 / 200]).sum() == pytest.approx(1)
    assert inverse[2] == 0
