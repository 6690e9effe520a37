"""Turns, zoom, noise and choosy crops of images with masks."""

from __future__ import annotations

import numpy as np
import pytest
from mask_scenes import (
    COLOURS,
    IGNORE,
    Scenes,
    first_batches,
    scene,
    scenes,
    seen_classes,
)
from PIL import Image

from input_pipeline.backends import image_backend
from input_pipeline.transforms import degradations
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


def test_both_back_ends_turn_and_zoom_alike(monkeypatch):
    changes = {"rotate": 30.0, "zoom": (0.5, 1.5), "transpose": 0.5}
    compiled = first_batches(scenes(), noise=1.0, **changes)
    monkeypatch.setattr(image_backend.cpp, "available", lambda: False)
    for one, other in zip(
        compiled, first_batches(scenes(), noise=1.0, **changes), strict=True
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
    transform = WholeTransform(48, canvas, IGNORE)
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
