"""The stronger chain against albumentations 2.0.8 and its own definitions."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sample_images import photo, train_image

from configs import inputs
from input_pipeline.transforms import degradations, operations
from input_pipeline.transforms.operations import Operation
from input_pipeline.transforms.policy import Augment

GOLDENS = np.load(Path(__file__).parent / "goldens" / "degradations.npz")

CHAIN = ("gamma", "blur", "downscale", "jpeg", "coarse_dropout")


def after(name):
    """Parameter -> golden image."""
    keys, images = GOLDENS["after/keys"].tolist(), GOLDENS["after/images"]
    found = {
        key.partition("/")[2]: image
        for key, image in zip(keys, images, strict=True)
        if key.startswith(f"{name}/")
    }
    assert found
    return found.items()


@pytest.mark.parametrize(
    ("name", "kind", "allowed"),
    [
        ("gamma", float, 0),
        ("gaussian_blur", float, 1),
        ("downscale", float, 0),
        ("jpeg", int, 1),
    ],
)
def test_same_as_albumentations(name, kind, allowed):
    image = Image.fromarray(GOLDENS["small"])
    for value, golden in after(name):
        drawn = [Operation(name, kind(value))]
        result = np.asarray(operations.apply(image, drawn))
        assert np.abs(result.astype(int) - golden).max() <= allowed, value


def test_coarse_dropout_same_as_albumentations():
    image = Image.fromarray(GOLDENS["small"])
    [(_, golden)] = after("coarse_dropout")
    result = degradations.coarse_dropout(image, GOLDENS["holes"])
    np.testing.assert_array_equal(np.asarray(result), golden)
    np.testing.assert_array_equal(np.asarray(image), GOLDENS["small"])


def test_gamma_one_changes_nothing():
    table = degradations.gamma_table(1.0)
    np.testing.assert_array_equal(table, np.arange(256))
    squared = degradations.gamma_table(2.0)
    np.testing.assert_array_equal(squared, np.arange(256) ** 2 // 255)


def test_blur_of_a_point_is_the_kernel():
    point = np.zeros((31, 41, 3), np.uint8)
    point[15, 20] = 255
    blurred = np.asarray(
        degradations.gaussian_blur(Image.fromarray(point), 2.0)
    )
    y, x = np.mgrid[-15:16, -20:21]
    kernel = np.exp(-(x**2 + y**2) / 8.0) * (np.maximum(abs(x), abs(y)) <= 7)
    expected = 255 * kernel / kernel.sum()
    assert np.abs(blurred - expected[..., None]).max() <= 0.51


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 2), (20, 5)])
def test_flat_colours_survive_at_any_size(shape):
    flat = Image.new("RGB", shape, (13, 200, 97))
    for sigma in (0.1, 0.9, 2.0, 6.0):
        blurred = degradations.gaussian_blur(flat, sigma)
        assert blurred.getcolors() == flat.getcolors()
    for scale in (0.01, 0.25, 0.75):
        assert degradations.downscale(flat, scale).size == shape
        assert degradations.downscale(flat, scale).getcolors() == (
            flat.getcolors()
        )
    compressed = np.asarray(degradations.jpeg(flat, 90)).astype(int)
    assert np.abs(compressed - (13, 200, 97)).max() <= 4


def test_downscaling_to_a_half_keeps_every_other_pixel():
    pixels = photo(10, 14)
    result = np.asarray(degradations.downscale(Image.fromarray(pixels), 0.5))
    expected = pixels[::2, ::2].repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(result, expected)


def test_lower_quality_is_further_from_the_photo():
    pixels = photo(48, 64)
    errors = []
    for quality in (95, 70, 40, 10):
        result = degradations.jpeg(Image.fromarray(pixels), quality)
        errors.append(np.abs(np.asarray(result) - pixels.astype(int)).mean())
    assert errors == sorted(errors) and errors[-1] > 2 * errors[0]


def test_holes_are_inside_and_of_the_size_that_is_told():
    rng = np.random.default_rng(0)
    counts, sides, corners = set(), [], []
    for _ in range(400):
        holes = degradations.sample_holes(100, 60, rng)
        counts.add(len(holes))
        sizes = holes[:, 2:] - holes[:, :2]
        sides += sizes.tolist()
        corners += (holes[:, :2] / ((100, 60) - sizes)).tolist()
        assert (holes[:, :2] >= 0).all() and (holes[:, 2:] <= (100, 60)).all()
    assert counts == set(range(1, 9))
    assert np.min(sides, axis=0).tolist() == [10, 6]
    assert np.max(sides, axis=0).tolist() == [19, 11]
    np.testing.assert_allclose(np.mean(corners, axis=0), 0.5, atol=0.03)


def test_holes_of_a_single_pixel_image():
    holes = degradations.sample_holes(1, 1, np.random.default_rng(0))
    image = degradations.coarse_dropout(Image.new("RGB", (1, 1), "red"), holes)
    assert image.getpixel((0, 0)) == (255, 0, 0)


def image_after(seed=0, **changes):
    settings = dataclasses.replace(Augment(), **changes)
    rng = np.random.default_rng(seed)
    return train_image(photo(60, 80), settings, 48, rng)


def test_what_is_off_changes_no_bit():
    """Runs that were begun before there was a stronger chain go on exactly."""
    pixels = [image_after(seed) for seed in range(20)]
    digest = hashlib.sha256(np.stack(pixels).tobytes()).hexdigest()
    assert digest[:16] == "773d1204d56dd7a9"


@pytest.mark.parametrize("name", CHAIN)
def test_each_step_runs_with_its_probability(name):
    always = [
        not np.array_equal(image_after(seed, **{name: 1.0}), image_after(seed))
        for seed in range(30)
    ]
    # A blur of less than 2/7 pixels is none.
    assert np.mean(always) >= (0.8 if name == "blur" else 1.0)
    half = [
        not np.array_equal(image_after(seed, **{name: 0.4}), image_after(seed))
        for seed in range(60)
    ]
    assert 0.15 < np.mean(half) < 0.65


def test_the_whole_chain_is_a_function_of_the_generator():
    everything = dict.fromkeys(CHAIN, 1.0)
    first = image_after(3, **everything)
    np.testing.assert_array_equal(first, image_after(3, **everything))
    assert (first != image_after(4, **everything)).any()
    assert first.shape == (48, 48, 3) and first.dtype == np.uint8


def test_recipes_leave_it_off_and_can_turn_it_on():
    config = inputs.augment()
    assert {config[name] for name in CHAIN} == {0.0}
    assert Augment(**config) == Augment()
