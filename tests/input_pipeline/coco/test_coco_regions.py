"""Pixels to run lengths and polygons and back, as pycocotools reads them."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as tools

from input_pipeline.coco import outlines, regions

PIXELS = arrays(
    bool,
    st.tuples(st.integers(1, 14), st.integers(1, 14)),
    elements=st.booleans(),
)


def region_of(annotation, height, width):
    region = np.zeros(height * width, bool)
    region[regions.pixels_of(annotation, height, width)] = True
    return region.reshape(height, width, order="F")


@settings(deadline=None)
@given(pixels=PIXELS.filter(lambda pixels: pixels.any()))
def test_run_lengths_are_those_of_pycocotools(pixels):
    lengths = regions.run_lengths(pixels, 0, 0, *pixels.shape)
    packed = tools.frPyObjects(dict(lengths), *pixels.shape)
    expected = tools.encode(np.asfortranarray(pixels.astype(np.uint8)))
    assert packed == expected
    assert json.loads(json.dumps(lengths)) == lengths


@settings(deadline=None)
@given(pixels=PIXELS.filter(lambda pixels: pixels.any()))
def test_a_window_in_an_image_lies_where_it_was(pixels):
    height, width = pixels.shape
    whole = np.zeros((height + 3, width + 5), bool)
    whole[2 : 2 + height, 4 : 4 + width] = pixels
    lengths = regions.run_lengths(pixels, 4, 2, *whole.shape)
    found = region_of({"segmentation": lengths}, *whole.shape)
    np.testing.assert_array_equal(found, whole)
    polygons = outlines.polygons(pixels, 4, 2)
    found = region_of({"segmentation": polygons}, *whole.shape)
    np.testing.assert_array_equal(found, whole)


@settings(deadline=None)
@given(pixels=PIXELS)
def test_compressed_run_lengths_are_read_as_pycocotools_does(pixels):
    packed = tools.encode(np.asfortranarray(pixels.astype(np.uint8)))
    shape = {"size": list(pixels.shape), "counts": packed["counts"].decode()}
    found = region_of({"segmentation": shape}, *pixels.shape)
    np.testing.assert_array_equal(found, pixels)


def test_large_run_lengths_too():
    rng = np.random.default_rng(0)
    pixels = np.repeat(np.repeat(rng.random((9, 7)) < 0.5, 130, 0), 190, 1)
    packed = tools.encode(np.asfortranarray(pixels.astype(np.uint8)))
    shape = {"size": list(pixels.shape), "counts": packed["counts"].decode()}
    found = region_of({"segmentation": shape}, *pixels.shape)
    np.testing.assert_array_equal(found, pixels)


def test_polygons_mean_what_coco_says():
    """Pixel-edge coordinates; several polygons are a union."""
    square = [1, 1, 4, 1, 4, 3, 1, 3]
    found = region_of({"segmentation": [square]}, 4, 6)
    assert np.argwhere(found).tolist() == [
        [y, x] for y in (1, 2) for x in (1, 2, 3)
    ]
    half = [0.5, 0.5, 3.5, 0.5, 3.5, 2.5, 0.5, 2.5]
    assert region_of({"segmentation": [half]}, 4, 6).sum() == 6
    both = {"segmentation": [square, [3, 0, 6, 0, 6, 2, 3, 2]]}
    assert region_of(both, 4, 6).sum() == 6 + 6 - 1


def test_outlines_are_short_and_cut_only_where_there_is_a_hole():
    pixels = np.ones((5, 7), bool)
    assert outlines.polygons(pixels) == [[0, 0, 7, 0, 7, 5, 0, 5]]
    pixels[2, 3] = False
    assert len(outlines.polygons(pixels)) == 2
    # Touching at a corner alone: one region of two polygons.
    assert len(outlines.polygons(np.eye(2, dtype=bool))) == 2


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (None, "no segmentation"),
        ([], "no segmentation"),
        ([[1, 1, 3, 1]], "three points"),
        ([[1, 1, 3, 1, 3, 3, 1]], "three points"),
        ([1, 1, 3, 1, 3, 3], "three points"),
        ([[1, 1, 3, 1, 3, float("nan")]], "cannot be"),
        ([[1, 1, 3, 1, 3, 1e9]], "cannot be"),
        ([[1, 1, 3, 1, 3, "3"]], "cannot be"),
        ({"size": [6, 4], "counts": [24]}, r"size \[6, 4\]"),
        ({"size": [4, 6], "counts": [20]}, "do not fill"),
        ({"size": [4, 6], "counts": [-4, 28]}, "do not fill"),
        ({"size": [4, 6], "counts": "?????"}, "do not fill|damaged"),
        ({"size": [4, 6], "counts": "o" * 40}, "damaged"),
        ({"size": [4, 6], "counts": "é"}, "damaged"),
        ({"size": [4, 6]}, "do not fill"),
    ],
)
def test_what_means_no_region(shape, words):
    with pytest.raises(regions.BadAnnotation, match=words):
        region_of({"segmentation": shape}, 4, 6)


@settings(deadline=None)
@given(text=st.text(st.characters(max_codepoint=127), max_size=30))
def test_no_string_crashes(text):
    shape = {"size": [5, 5], "counts": text}
    with contextlib.suppress(regions.BadAnnotation):
        found = region_of({"segmentation": shape}, 5, 5)
        assert found.shape == (5, 5)
