"""Turns, zoom, noise and choosy crops of images with masks."""

from __future__ import annotations

import numpy as np
import pytest
from mask_scenes import (
    COLOURS,
    Scenes,
    first_batches,
    scene,
    scenes,
    seen_classes,
)
from PIL import Image

from core.class_colours import IGNORE
from input_pipeline.backends import image_backend
from input_pipeline.transforms import degradations, operations, policy
from input_pipeline.transforms.policy import Augment
from input_pipeline.transforms.views import WholeTransform


@pytest.mark.parametrize(
    "changes",
    [
        {"flip_vertical": 1.0},
        {"transpose": 1.0},
        {"flip_vertical": 0.5, "transpose": 0.5, "flip": 0.5},
        {"rotate": 40.0},
        {"zoom": (0.5, 2.0)},
        {"rotate": 20.0, "zoom": (0.7, 1.0), "crop_max_share": 0.6},
    ],
    ids=str,
)
def test_turns_and_zoom_move_both(changes):
    still = {"randaugment_ops": 0, "flip": 0.0}
    plain = first_batches(scenes(), **still)
    moved = first_batches(scenes(), **(still | changes))
    for one, other in zip(plain, moved, strict=True):
        assert (one["mask"] != other["mask"]).any()
        classes, certain = seen_classes(other["image"])
        agree = (classes == other["mask"])[certain]
        assert agree.mean() > 0.97
        outside = (other["image"].sum(-1, dtype=int) == 0).mean()
        shrinks = "rotate" in changes or changes.get("zoom", (1,))[0] < 1
        assert (outside > 0) == shrinks
        assert ((other["mask"] == IGNORE).mean() > 0) == shrinks


class OneClass(Scenes):
    """Images that are all of class 1."""

    def read(self, row):
        mask = np.ones((90, 110), np.uint8)
        return {"image": COLOURS[mask], "mask": mask}


@pytest.mark.parametrize(
    "changes",
    [
        {"rotate": 45.0},
        {"zoom": (0.4, 0.9)},
        {"rotate": 30.0, "zoom": (0.5, 1.0), "transpose": 0.5},
        {"randaugment_ops": 2, "rotate": 10.0, "flip_vertical": 0.5},
    ],
    ids=str,
)
def test_what_comes_in_from_outside_is_ignored_never_class_0(changes):
    examples = OneClass(*(getattr(scenes(), n) for n in ("ids", "labels")))
    outside = 0
    for batch in first_batches(examples, **({"randaugment_ops": 0} | changes)):
        assert set(np.unique(batch["mask"])) <= {1, IGNORE}
        if changes.get("randaugment_ops"):
            continue  # It may make other pixels black.
        black = ~batch["image"].any(-1)
        assert (batch["mask"][black] == IGNORE).all()
        # Where smoothing reaches across the edge, a pixel is not quite black.
        beside = (batch["mask"] == IGNORE) & ~black
        assert beside.mean() < 0.03
        outside += black.sum()
    assert outside or changes.get("randaugment_ops")


@pytest.mark.parametrize("degrees", [-33.0, 12.5, 90.0])
def test_masks_turn_as_pillow_turns_them(degrees):
    """Against the clock, about the middle, at the size that they had."""
    mask = scene(4, 81, 120)
    turned = operations.apply_to_mask(
        mask, [operations.Operation("turn_and_zoom", (degrees, 1.0))], IGNORE
    )
    expected = Image.fromarray(mask).rotate(
        degrees, Image.Resampling.NEAREST, fillcolor=IGNORE
    )
    same = turned == np.asarray(expected)
    assert same.mean() > 0.999  # Pixels on an edge may fall to either side.


def test_noise_and_brightness_are_drawn_over_their_whole_ranges():
    """albumentations: contrast and brightness +- .2, variance 10 to 50."""
    augment = Augment(
        randaugment_ops=0, jitter_prob=0.0, noise=1.0, brightness_contrast=1.0
    )
    rng = np.random.default_rng(0)
    drawn = [policy.draw_operations(augment, 64, rng) for _ in range(2000)]
    found = [{one.name: one.value for one in each} for each in drawn]
    pairs = np.array([one["brightness_contrast"] for one in found])
    stds = np.array([one["noise"][0] for one in found])
    for values, low, high in (
        (pairs[:, 0], 0.8, 1.2),
        (pairs[:, 1], -0.2, 0.2),
        (stds, 10**0.5, 50**0.5),
    ):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        assert values.mean() == pytest.approx(
            (low + high) / 2, rel=0.02, abs=0.01
        )
    assert len({one["noise"][1] for one in found}) == 2000


@pytest.mark.parametrize(
    "changes",
    [
        {"rotate": 30.0, "zoom": (0.5, 1.5), "transpose": 0.5, "noise": 1.0},
        {"crop_max_share": 0.6, "crop_scale": (0.1, 0.5), "rotate": 10.0},
        {
            "flip_vertical": 0.5,
            "brightness_contrast": 1.0,
            "jitter": (0.4, 0.4, 0.4, 0.1),
            "gamma": 1.0,
            "blur": 0.5,
            "coarse_dropout": 0.5,
        },
    ],
    ids=str,
)
def test_both_back_ends_do_the_same(monkeypatch, changes):
    compiled = first_batches(scenes(), **changes)
    monkeypatch.setattr(image_backend.cpp, "available", lambda: False)
    for one, other in zip(
        compiled, first_batches(scenes(), **changes), strict=True
    ):
        for name in ("image", "mask"):
            np.testing.assert_array_equal(one[name], other[name])


def test_noise_and_brightness_leave_masks_alone_and_are_the_references():
    still = {"randaugment_ops": 0, "flip": 0.0}
    plain = first_batches(scenes(), **still)
    loud = first_batches(scenes(), **still, noise=1.0, brightness_contrast=1.0)
    for one, other in zip(plain, loud, strict=True):
        assert (one["image"] != other["image"]).any()
        np.testing.assert_array_equal(one["mask"], other["mask"])
    # albumentations: 1.2 * 100 + .2 * 255 = 171, without the image's mean.
    table = degradations.brightness_contrast_table((1.2, 0.2))
    assert table[100] == 171
    assert (table[0], table[255]) == (51, 255)
    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    for std in degradations.NOISE_STDS:
        noisy = np.asarray(degradations.noise(grey, (std, 7)), float)
        assert noisy.std() == pytest.approx(std, rel=0.03)
        assert noisy.mean() == pytest.approx(128, abs=0.1)
    assert pytest.approx((3.162, 7.071), abs=1e-3) == degradations.NOISE_STDS


def test_a_crop_of_one_class_alone_is_drawn_anew():
    class Corner(Scenes):
        def read(self, row):
            mask = np.zeros((90, 90), np.uint8)
            mask[:30, :30] = 1
            return {"image": COLOURS[mask], "mask": mask}

    corner = Corner(*(getattr(scenes(), name) for name in ("ids", "labels")))
    small = {"randaugment_ops": 0, "crop_scale": (0.1, 0.1)}

    def of_one_class(batches):
        masks = np.concatenate([batch["mask"] for batch in batches])
        return np.mean([len(np.unique(mask)) == 1 for mask in masks])

    careless = of_one_class(first_batches(corner, count=8, **small))
    choosy = of_one_class(
        first_batches(corner, count=8, **small, crop_max_share=0.9)
    )
    assert careless > 0.6
    assert choosy < careless / 2


@pytest.mark.parametrize("canvas", [(190, 168), (70, 60)])
def test_a_whole_view_keeps_the_mask_at_its_own_size(canvas):
    transform = WholeTransform(48, canvas)
    examples = scenes()
    spec = transform.spec(examples.kinds)
    for row in range(3):
        done = transform(examples.read(row))
        assert {k: (v.shape, v.dtype.type) for k, v in done.items()} == spec
        truth = scene(row, 150 + 9 * row)
        assert done["size"].tolist() == [190, len(truth)]
        width, height = done["mask_size"]
        frame = done["mask"]
        assert (frame[height:] == IGNORE).all()
        assert (frame[:, width:] == IGNORE).all()
        inside = frame[:height, :width]
        if canvas[0] == 190:
            np.testing.assert_array_equal(inside, truth)
        else:
            assert max(width / 70, height / 60) == pytest.approx(1, abs=0.02)
            y = (np.arange(height) + 0.5) * len(truth) // height
            x = (np.arange(width) + 0.5) * 190 // width
            nearest = truth[np.ix_(y.astype(int), x.astype(int))]
            # Halves fall to one side or the other.
            assert (inside == nearest).mean() > 0.99
