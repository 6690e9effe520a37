"""Scenes of digits: masks that fit their pixels, the same every time."""

import numpy as np

from configs import inputs
from input_pipeline.sources import digit_scenes
from input_pipeline.sources.base import Kind


def test_scenes_and_their_masks():
    source = digit_scenes.open_digit_scenes(inputs.data())
    assert len(source.labelled) == 800 and len(source.test) == 200
    assert source.labelled.kinds["mask"] is Kind.MASK
    assert source.classes[0] == "background" and len(source.classes) == 11
    assert (source.mask_pixels > 0).sum(0).min() > 100
    counts = source.mask_pixels.sum(1)
    assert set(counts.tolist()) == {digit_scenes.SIDE**2}
    for row in range(20):
        example = source.labelled.read(row)
        again = source.labelled.read(row)
        image, mask = example["image"].astype(int), example["mask"]
        assert image.shape == (64, 64, 3) and mask.shape == (64, 64)
        for name, values in example.items():
            assert values.dtype == np.uint8
            np.testing.assert_array_equal(values, again[name])
        # Digits are bright, and nothing else is.
        assert image[mask > 0].mean() > image[mask == 0].mean() + 40
        assert 1 <= len(set(mask[mask > 0].tolist())) <= 4


def test_no_digit_is_in_both_splits():
    source = digit_scenes.open_digit_scenes(inputs.data())
    known = {digit.tobytes() for digit in source.labelled.digits}
    shared = [digit.tobytes() in known for digit in source.test.digits]
    assert np.mean(shared) < 0.02  # A few digits look the same to the pixel.
