"""C++ and Pillow with NumPy: the same bits, whoever does it."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sample_images import encoded, eval_image, photo, train_image

from input_pipeline import decoding
from input_pipeline.backends import cpp, image_backend, pillow
from input_pipeline.transforms import geometry, operations, policy, views
from input_pipeline.transforms.operations import Operation
from input_pipeline.transforms.policy import Augment

STRONG = Augment(
    randaugment_ops=3,
    grayscale=0.3,
    gamma=0.3,
    blur=0.1,
    downscale=0.1,
    jpeg=0.1,
    coarse_dropout=0.1,
)
sides = st.integers(1, 90)
seeds = st.integers(0, 1 << 30)
HAS_COMPILER = (
    shutil.which(os.environ.get("CXX", "c++")) is not None
    and platform.machine() == "x86_64"
    and os.environ.get("SEXTET_NATIVE") != "0"
    and hasattr(Image.Image, "__arrow_c_array__")
)
needs_compiler = pytest.mark.skipif(
    not HAS_COMPILER,
    reason="no C++ compiler, another processor, or told not to compile",
)


def picture(width, height, seed):
    """Noise, flat areas, extremes or a photo: uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    shape = (height, width, 3)
    match seed % 4:
        case 0:
            return rng.integers(0, 256, shape).astype(np.uint8)
        case 1:
            return rng.choice(np.uint8([0, 255]), shape)
        case 2:
            return np.full(shape, rng.integers(0, 256, 3), np.uint8)
    return photo(height, width, seed)


def test_there_is_compiled_code_where_there_is_a_compiler():
    assert cpp.available() == HAS_COMPILER


@needs_compiler
@settings(max_examples=150, deadline=None)
@given(sides, sides, st.integers(1, 70), seeds, st.booleans())
def test_resizes_to_the_same_bits(width, height, size, seed, mirrored):
    rng = np.random.default_rng(seed)
    pixels = picture(width, height, seed)
    image = Image.fromarray(pixels)
    left, top = (int(rng.integers(side)) for side in (width, height))
    right = int(rng.integers(left, width)) + 1
    bottom = int(rng.integers(top, height)) + 1
    crop = (left, top, right, bottom)
    for seen in (None, crop):
        right_one = pillow.resized(image, size, crop=seen, mirrored=mirrored)
        for source in (image, pixels):
            found = cpp.resized(source, size, crop=seen, mirrored=mirrored)
            np.testing.assert_array_equal(found[..., :3], right_one)
    starts = rng.uniform(0, (width, height))
    ends = rng.uniform(starts, (width, height))
    box = (*starts.tolist(), *ends.tolist())
    np.testing.assert_array_equal(
        cpp.resized(image, size, box=box)[..., :3],
        pillow.resized(image, size, box=box),
    )


@needs_compiler
@settings(max_examples=150, deadline=None)
@given(sides, sides, st.integers(1, 70), seeds, st.booleans())
def test_masks_are_resized_to_the_same_bits(
    width, height, size, seed, mirrored
):
    rng = np.random.default_rng(seed)
    mask = picture(width, height, seed)[..., 0]
    starts = rng.integers(0, (width, height))
    ends = rng.integers(starts, (width, height)) + 1
    starts_within = rng.uniform(0, (width, height))
    ends_within = rng.uniform(starts_within, (width, height))
    for box in (
        (0, 0, width, height),
        (*starts.tolist(), *ends.tolist()),
        (*starts_within.tolist(), *ends_within.tolist()),
    ):
        np.testing.assert_array_equal(
            cpp.resized_mask(mask, size, box, mirrored),
            pillow.resized_mask(mask, size, box, mirrored),
        )


@needs_compiler
@settings(max_examples=150, deadline=None)
@given(
    sides,
    sides,
    st.sampled_from(sorted(geometry.MATRICES)),
    st.floats(-1, 1),
    st.integers(0, 255),
    seeds,
)
def test_masks_are_moved_to_the_same_bits(
    width, height, name, strength, fill, seed
):
    unit = 100 if name.startswith(("translate", "rotate")) else 1
    value = int(unit * strength) if "translate" in name else unit * strength
    if name == "turn_and_zoom":
        value = 90 * strength, 1 + strength / 2
    matrix = geometry.MATRICES[name](value, width, height)
    mask = picture(width, height, seed)[..., 0]
    np.testing.assert_array_equal(
        cpp.affine_mask(mask, matrix, fill),
        pillow.affine_mask(mask, matrix, fill),
    )


@needs_compiler
def test_both_orders_of_width_and_height_are_seen():
    rng = np.random.default_rng(0)
    orders = set()
    for width, height in [(40, 40), (40, 50), (40, 90), (20, 33), (90, 40)]:
        pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        image = Image.fromarray(pixels)
        orders.add(cpp._down_first(width, height, 32))
        np.testing.assert_array_equal(
            cpp.resized(image, 32)[..., :3],
            pillow.resized(image, 32),
        )
    version = int(Image.__version__.partition(".")[0])
    assert orders == ({False, True} if version >= 13 else {False})


@needs_compiler
def test_what_others_say_of_pythons_own_functions_changes_nothing(monkeypatch):
    """LightGBM sets the type of what this one returns, for all."""
    shared = ctypes.pythonapi.PyCapsule_GetPointer
    monkeypatch.setattr(shared, "restype", ctypes.c_void_p)
    image = Image.fromarray(photo(40, 30))
    same = pillow.resized(image, 20)
    np.testing.assert_array_equal(cpp.pixels(cpp.resized(image, 20)), same)


@needs_compiler
def test_an_image_in_several_blocks_of_memory():
    pixels = np.random.default_rng(0).integers(0, 256, (2100, 2100, 3))
    image = Image.fromarray(pixels.astype(np.uint8))
    with pytest.raises(ValueError, match="contiguous"):
        image.__arrow_c_array__()
    crop = (100, 1000, 2000, 2050)
    np.testing.assert_array_equal(
        cpp.resized(image, 20, crop, mirrored=True)[..., :3],
        pillow.resized(image, 20, crop, mirrored=True),
    )


@needs_compiler
@pytest.mark.parametrize("shape", [(2, 20000), (20000, 2)])
def test_a_very_long_image(shape):
    image = Image.fromarray(picture(*shape, 0))
    for what in (image, np.asarray(image)):
        np.testing.assert_array_equal(
            cpp.resized(what, 20)[..., :3],
            pillow.resized(image, 20),
        )


EXAMPLES = [
    *(Operation(name, value) for name in ("shear_x", "shear_y")
      for value in (-0.3, 0.02, 0.3)),
    *(Operation(name, value) for name in ("translate_x", "translate_y")
      for value in (-500, -3, 0, 1, 500)),
    *(Operation("rotate", value) for value in (-30.0, 0.0, 7.3, 90.0, 180.0)),
    *(Operation(name, value) for name in ("brightness", "contrast")
      for value in (0.0, 0.4, 1.0, 1.9)),
    *(Operation(name, value) for name in ("saturation", "sharpness")
      for value in (0.0, 0.1, 0.73, 1.0, 1.4, 1.9)),
    *(Operation("hue", value) for value in (-0.5, -0.1, 0.0, 0.07, 0.5)),
    *(Operation(name) for name in ("autocontrast", "equalize", "grayscale")),
    Operation("posterize", 3),
    Operation("solarize", 100.0),
    Operation("gaussian_blur", 1.0),
    Operation("jpeg", 60),
]  # fmt: skip


def in_both(pixels, drawn):
    """What each form makes of an image: two of uint8 [H, W, 3]."""
    plain = Image.fromarray(pixels)
    native = cpp.from_pillow(plain)
    return [
        image_backend.pixels(operations.apply(image, drawn))
        for image in (plain, native)
    ]


@needs_compiler
@pytest.mark.parametrize("operation", EXAMPLES, ids=str)
def test_every_operation_gives_the_same_bits(operation):
    shapes = [(1, 1), (1, 9), (9, 2), (3, 3), (17, 33), (64, 64), (129, 31)]
    for seed, shape in enumerate(shapes * 4):
        right, found = in_both(picture(*shape, seed // 2), [operation])
        np.testing.assert_array_equal(found, right)


@needs_compiler
@settings(max_examples=100, deadline=None)
@given(sides, sides, seeds)
def test_drawn_operations_give_the_same_bits(width, height, seed):
    rng = np.random.default_rng(seed)
    drawn = policy.draw_operations(STRONG, min(width, height), rng)
    right, found = in_both(picture(width, height, seed), drawn)
    np.testing.assert_array_equal(found, right)


@needs_compiler
def test_every_colour_turns_and_fades_to_the_same_bits():
    steps = np.arange(0, 256, 5, dtype=np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1)
    colours = colours.reshape(52, 52 * 52, 3)
    for operation in [
        *(Operation("hue", shift) for shift in (-0.1, 0.02, 0.35)),
        *(Operation("saturation", factor) for factor in (0.6, 0.93, 1.4)),
        Operation("grayscale"),
    ]:
        right, found = in_both(colours, [operation])
        np.testing.assert_array_equal(found, right)


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.floats(-400, 400), seeds)
def test_turns_as_pillow_turns(width, height, degrees, seed):
    image = Image.fromarray(picture(width, height, seed))
    turned = operations.apply(image, [Operation("rotate", degrees)])
    np.testing.assert_array_equal(turned, image.rotate(degrees))


def test_no_operation_works_in_place():
    pixels = picture(20, 30, 3)
    for image in (Image.fromarray(pixels), *made_native(pixels)):
        for operation in EXAMPLES:
            operations.apply(image, [operation])
        np.testing.assert_array_equal(image_backend.pixels(image), pixels)


def made_native(pixels):
    if cpp.available():
        yield cpp.from_pillow(Image.fromarray(pixels))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "pixels"])
def test_whether_there_is_a_compiler_shows_in_no_bit(kind, monkeypatch):
    pixels = photo(130, 170)
    data = pixels if kind == "pixels" else encoded(pixels, kind)

    def done():
        for seed, size in enumerate([16, 40, 61] * 4):
            rng = np.random.default_rng(seed)
            yield train_image(data, STRONG, size, rng)
            yield eval_image(data, views.VIEWS, size, str(seed))

    native = list(done())
    monkeypatch.setattr(cpp, "available", lambda: False)
    for found, right in zip(native, done(), strict=True):
        np.testing.assert_array_equal(found, right)


@needs_compiler
def test_the_pipeline_takes_the_compiled_form():
    image = decoding.open_image(encoded(photo()))
    resized = image_backend.resized(decoding.upright_rgb(image), 8)
    assert image_backend.of(resized) is cpp
    # Where Pillow computes otherwise.
    image = Image.new("RGB", (2, 2))
    huge = image_backend.resized(image, cpp.LARGEST + 1, crop=(0, 0, 1, 1))
    assert image_backend.of(huge) is pillow


def test_magnitudes_stay_where_sixteen_places_suffice():
    """`sextet_affine` counts in 1/65536 pixel, in 32 bits."""
    size = cpp.LARGEST
    for name in ("ShearX", "TranslateX", "Rotate"):
        strength = policy.magnitude(name, 30, size, size)
        moved = policy.randaugment(name, strength)
        matrix = geometry.MATRICES[moved.name]
        a, b, c, d, e, f = matrix(moved.value, size, size)
        for x, y in [(0, 0), (size, 0), (0, size), (size, size)]:
            assert abs(a * x + b * y + c) < 32767
            assert abs(d * x + e * y + f) < 32767


@needs_compiler
@pytest.mark.parametrize(
    "differs",
    ["resized", "affine", "saturation", "resized_mask", "affine_mask"],
)
def test_a_pillow_that_computes_otherwise_is_left_alone(differs, monkeypatch):
    assert cpp._agrees()
    usual = getattr(pillow, differs)

    def other(*arguments):
        pixels = np.array(usual(*arguments))
        pixels[7, 7] ^= 1
        return pixels if "mask" in differs else Image.fromarray(pixels)

    monkeypatch.setattr(pillow, differs, other)
    assert not cpp._agrees()
