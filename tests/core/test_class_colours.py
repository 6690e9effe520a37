"""Colours of classes differ, and masks are drawn in them."""

from __future__ import annotations

import numpy as np
import pytest

from core import class_colours


@pytest.mark.parametrize("count", [1, 2, 11, 40, 254])
def test_colours_differ_from_each_other_and_from_the_stripes(count):
    colours = class_colours.palette(count)
    assert colours.shape == (count, 3) and colours.dtype == np.uint8
    seen = {*map(tuple, colours.tolist())}
    assert len(seen) == count
    assert not seen & {*map(tuple, class_colours._STRIPES.tolist())}


def test_twenty_classes_can_be_told_apart():
    colours = class_colours.palette(20).astype(int)
    apart = np.abs(colours[:, None] - colours).sum(-1)
    assert apart[~np.eye(20, dtype=bool)].min() >= 90


def test_a_class_keeps_its_colour_whatever_the_others():
    np.testing.assert_array_equal(
        class_colours.palette(30)[:7], class_colours.palette(7)
    )


def test_masks_are_drawn_and_laid_over_images():
    mask = np.array([[0, 1, 255], [1, 0, 255]], np.uint8)
    colours = class_colours.palette(2)
    picture = class_colours.drawn(mask, 2)
    np.testing.assert_array_equal(picture[:, :2], colours[mask[:, :2]])
    white = np.full((2, 3, 3), 255, np.uint8)
    over = class_colours.overlay(white, mask, 2)
    expected = 0.55 * picture + 0.45 * 255
    np.testing.assert_allclose(over, expected, atol=1)
