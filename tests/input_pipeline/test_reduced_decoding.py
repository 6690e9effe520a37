"""Large JPEGs are decoded no larger than their crop needs."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from sample_images import encoded, photo, train_image

from input_pipeline.decoding import BadImage, decode
from input_pipeline.transforms import geometry
from input_pipeline.transforms.policy import Augment

CROP_ALONE = Augment(flip=0.0, randaugment_ops=0, jitter=(0.0, 0.0, 0.0, 0.0))


def crops(data, size, seed):
    """The same crop of the file, and of its pixels decoded in full."""
    return [
        train_image(what, CROP_ALONE, size, np.random.default_rng(seed))
        for what in (data, decode(data))
    ]


def smooth(height, width):
    """A photo whose details are larger than a pixel, as a camera's are."""
    small = Image.fromarray(photo(height // 3, width // 3))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("shape", [(300, 400), (301, 403)])
@pytest.mark.parametrize("size", [32, 64, 96, 150])
def test_nearly_the_same_as_decoded_in_full(shape, size):
    data = encoded(smooth(*shape), quality=90)
    for seed in range(5):
        ours, exact = crops(data, size, seed)
        difference = np.abs(ours.astype(int) - exact)
        assert difference.mean() < 1.0
        assert difference.max() < 16


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("L", {}),
        ("CMYK", {}),
        ("RGB", {"progressive": True}),
        ("RGB", {"subsampling": "4:4:4"}),
    ],
)
def test_other_kinds_of_jpeg(mode, options):
    image = Image.fromarray(smooth(320, 240)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, **options)
    ours, exact = crops(buffer.getvalue(), 32, 0)
    assert np.abs(ours.astype(int) - exact).mean() < 1.0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_photos_are_cropped_at_the_same_place(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(320, 240), quality=90, exif=exif)
    for seed in range(3):
        ours, exact = crops(data, 32, seed)
        assert np.abs(ours.astype(int) - exact).mean() < 1.0


def decoded_sizes(monkeypatch, data, size, settings=CROP_ALONE):
    sizes = []
    original = geometry.upright_rgb

    def noting(image):
        result = original(image)
        sizes.append(result.size)
        return result

    monkeypatch.setattr(geometry, "upright_rgb", noting)
    train_image(data, settings, size, np.random.default_rng(0))
    return sizes


@pytest.mark.parametrize(
    ("size", "expected"),
    [(300, 400), (201, 400), (200, 200), (101, 200), (100, 100), (20, 50)],
)
def test_no_more_is_decoded_than_the_crop_needs(monkeypatch, size, expected):
    whole = Augment(
        crop_scale=(1.0, 1.0),
        crop_ratio=(1.0, 1.0),
        flip=0.0,
        randaugment_ops=0,
        jitter=(0.0, 0.0, 0.0, 0.0),
    )
    data = encoded(smooth(400, 400))
    assert decoded_sizes(monkeypatch, data, size, whole) == [
        (expected, expected)
    ]


def test_other_formats_are_decoded_in_full(monkeypatch):
    data = encoded(smooth(400, 400), "PNG")
    assert decoded_sizes(monkeypatch, data, 20) == [(400, 400)]
    ours, exact = crops(data, 20, 0)
    np.testing.assert_array_equal(ours, exact)


def test_crops_of_less_than_twice_the_size_are_exact():
    data = encoded(smooth(90, 120))
    ours, exact = crops(data, 64, 0)
    np.testing.assert_array_equal(ours, exact)


def test_a_large_file_that_is_cut_off_is_bad():
    data = encoded(smooth(400, 400))
    with pytest.raises(BadImage, match="truncated"):
        train_image(
            data[: len(data) // 2], CROP_ALONE, 32, np.random.default_rng(0)
        )
