"""Our augmentations against stored answers of torchvision 0.29.

tools/make_augment_goldens.py made the answers, on Pillow images. Where
torchvision drew random numbers, the same numbers are replayed here.
"""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sample_images import eval_image

from input_pipeline.backends import cpp, image_backend, pillow
from input_pipeline.transforms import geometry, mixing, operations, policy
from input_pipeline.transforms.operations import Operation

GOLDENS = np.load(Path(__file__).parent / "goldens" / "augment.npz")

# All that there are on this machine.
FORMS = [pillow, cpp] if cpp.available() else [pillow]

# Ops that must not differ at all: geometry, and what is a table per channel.
EXACT = set(policy.RANDAUGMENT) - {"Color", "Sharpness"}


def answers(name):
    keys, images = GOLDENS[f"{name}/keys"], GOLDENS[f"{name}/images"]
    return zip(keys.tolist(), images, strict=True)


@pytest.fixture(params=FORMS, ids=lambda form: form.__name__)
def done(request):
    """Does operations to a Pillow image in one of the forms."""

    def work(image, *drawn):
        image = request.param.from_pillow(image)
        drawn = [one for one in drawn if one]
        return image_backend.pixels(operations.apply(image, drawn))

    return work


def largest_difference(pixels, golden):
    ours = pixels.astype(int)
    assert ours.shape == golden.shape
    return int(np.abs(ours - golden).max())


@pytest.mark.parametrize("picture", ["tiny", "small"])
@pytest.mark.parametrize("name", policy.RANDAUGMENT)
def test_randaugment_op(picture, name, done):
    image = Image.fromarray(GOLDENS[picture])
    seen = 0
    for key, golden in answers(f"randaugment/{picture}"):
        op, level, sign = key.split("/")
        if op != name:
            continue
        strength = int(sign) * policy.magnitude(name, int(level), *image.size)
        result = done(image, policy.randaugment(name, strength))
        allowed = 0 if name in EXACT else 1
        assert largest_difference(result, golden) <= allowed, key
        seen += 1
    bins = 31 if picture == "tiny" else 2
    has_bins = name not in ("Identity", "AutoContrast", "Equalize")
    assert seen == (bins if has_bins else 1) * (1 + policy.RANDAUGMENT[name])


@pytest.mark.parametrize("size", ["224x224", "64x48", "331x500", "32x32"])
def test_magnitudes_of_all_bins(size):
    height, width = map(int, size.split("x"))
    for name in policy.RANDAUGMENT:
        golden = GOLDENS[f"magnitudes/{size}/{name}"]
        ours = [
            policy.magnitude(name, level, width, height)
            for level in range(len(golden))
        ]
        np.testing.assert_array_equal(np.float32(ours), golden)


def test_single_adjustments(done):
    image = Image.fromarray(GOLDENS["small"])
    for key, golden in answers("adjust"):
        name, _, value = key.partition("/")
        result = done(image, Operation(name, float(value or 0)))
        assert largest_difference(result, golden) <= 1, key


def test_color_jitter_in_every_order(done):
    """Each step from where torchvision was before it."""
    parameters = GOLDENS["jitter/parameters"]
    assert len({tuple(order) for order in parameters[:, :4]}) == 24
    for (*order, b, c, s, h), after in zip(
        parameters, GOLDENS["jitter/images"], strict=True
    ):
        before = GOLDENS["tiny"]
        for step, golden in zip(map(int, order), after, strict=True):
            image = Image.fromarray(before)
            result = done(
                image, Operation(policy.JITTER[step], (b, c, s, h)[step])
            )
            assert largest_difference(result, golden) <= 1, (order, step)
            before = golden


def test_color_jitter_as_a_whole(done):
    """A hue step widens the one level that a step before it was off.

    A turned hue moves in steps of 6 / 255 of the spread, so that two colours
    one level apart can come out several levels apart.
    """
    for (*order, b, c, s, h), after in zip(
        GOLDENS["jitter/parameters"], GOLDENS["jitter/images"], strict=True
    ):
        result = done(
            Image.fromarray(GOLDENS["tiny"]),
            *(
                Operation(policy.JITTER[step], (b, c, s, h)[step])
                for step in map(int, order)
            ),
        )
        difference = np.abs(result.astype(int) - after[-1])
        assert np.percentile(difference, 99) <= 3
        assert difference.mean() < 0.5


def test_color_jitter_draws_every_order_and_the_whole_range():
    rng = np.random.default_rng(0)
    drawn = [
        policy._draw_jitter((0.4, 1.5, 0.2, 0.1), rng) for _ in range(2000)
    ]
    orders = [tuple(name for name, _ in one) for one in drawn]
    orders, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(orders) == 24 and counts.min() > 50  # 83 on average
    ends = [(0.6, 1.4), (0.0, 2.5), (0.8, 1.2), (-0.1, 0.1)]
    for name, (low, high) in zip(policy.JITTER, ends, strict=True):
        values = [dict(one)[name] for one in drawn]
        np.testing.assert_allclose(min(values), low, atol=0.01)
        np.testing.assert_allclose(max(values), high, atol=0.01)
        assert low <= min(values) and max(values) <= high


def test_randaugment_draws_every_op_and_sign():
    settings, rng = policy.Augment(randaugment_ops=2), np.random.default_rng(0)
    drawn = [
        one
        for _ in range(1000)
        for one in policy._draw_randaugment(settings, 32, rng)
    ]
    counts = {one: drawn.count(one) for one in drawn}
    identities = 2000 - len(drawn)
    assert 100 < identities < 190  # 143 on average
    expected = {}
    for name, signed in policy.RANDAUGMENT.items():
        strength = policy.magnitude(name, 9, 32, 32)
        signs = (1, -1) if signed else (1,)
        expected |= {
            policy.randaugment(name, sign * strength): len(signs)
            for sign in signs
        }
    del expected[None]
    assert counts.keys() == expected.keys()
    for one, signs in expected.items():
        assert 100 < counts[one] * signs < 190, one


class Replay(np.random.Generator):
    """A generator that gives out numbers which torchvision drew."""

    def __init__(self, uniform, integers):
        super().__init__(np.random.Philox())
        self._uniform = iter(uniform)
        self._integers = iter(integers)

    def uniform(self, low, high):
        value = next(self._uniform)
        assert low - 1e-6 <= value <= high + 1e-6
        return value

    def integers(self, bound):
        value = int(next(self._integers))
        assert 0 <= value < bound
        return value


def test_random_resized_crop_boxes():
    fallbacks = 0
    for row, draws in zip(
        GOLDENS["crops/boxes"], GOLDENS["crops/draws"], strict=True
    ):
        height, width, top, left, h, w = row.tolist()
        low, high, i, j, *uniform = draws.tolist()
        fallbacks += i < 0
        box = geometry.random_crop_box(
            width, height, (low, high), (0.75, 1.3333), Replay(uniform, (i, j))
        )
        assert box == (left, top, left + w, top + h)
    assert fallbacks > 3  # The branch for shapes that no crop fits is seen.


def test_random_erasing_sizes():
    found = 0
    for row, draws in zip(
        GOLDENS["erasing/sizes"], GOLDENS["erasing/draws"], strict=True
    ):
        height, width, h, w = row.tolist()
        # torchvision stops drawing at the first fit; what follows may be
        # anything that fits as well.
        area = np.nan_to_num(draws[0::2], nan=0.1)[None]
        ratio = np.exp(np.nan_to_num(draws[1::2], nan=0.0))[None]
        if h == 0:
            assert not np.isnan(draws).any()
        ours = mixing._erase_sizes(
            jnp.float32(area), jnp.float32(ratio), height, width
        )
        assert (int(ours[0][0]), int(ours[1][0])) == (h, w)
        found += h > 0
    assert found > 0


@pytest.mark.parametrize("size", [16, 32, 56])
@pytest.mark.parametrize("number", [0, 1])
def test_center_view(number, size):
    image = GOLDENS[("small", "wide")[number]]
    golden = GOLDENS[f"evaluation/center/{number}/{size}"]
    views = eval_image(image, ("center", "center_flip"), size, "id")
    assert largest_difference(views[0], golden) <= 1
    np.testing.assert_array_equal(views[1], views[0][:, ::-1])


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("form", FORMS)
def test_resized_crop(form, number):
    image = Image.fromarray(GOLDENS[("small", "wide")[number]])
    result = form.pixels(form.resized(image, 32, crop=(2, 3, 27, 33)))
    golden = GOLDENS[f"evaluation/resized_crop/{number}"]
    assert largest_difference(result, golden) == 0
