"""Scores of pixels at an image's own size: whole, in windows, in views."""

from __future__ import annotations

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from configs import common
from configs import segmentation as segmentation_config
from core.errors import UserError
from input_pipeline import loader
from input_pipeline.sources.base import ArrayExamples
from input_pipeline.transforms.windows import Grid, Windows
from training.loop.state import make_abstract_model
from training.multihost import sharding
from training.tasks import segmentation_prediction as prediction_lib
from training.tasks import segmentation_stripes as stripes_lib
from training.tasks.segmentation_evaluator import resized_to_canvas
from training.tasks.segmentation_prediction import (
    PixelPredictor,
    make_step,
    resize_rule,
    windows_of,
)

C = 3
CHANNELS = np.zeros(3, np.float32), np.full(3, 1 / 255, np.float32)


class Answers(nnx.Module):
    """Gives the logits that stand in the image: channels are classes."""

    def __call__(self, images):
        return images / 64


class Lopsided(nnx.Module):
    """Prefers class 0 towards the left of what it sees, whatever that is."""

    def __call__(self, images):
        ramp = jnp.linspace(2, -2, images.shape[2])[None, None, :, None]
        first = jnp.array([1.0, 0.0, 0.0])
        return images / 255 + ramp * first


class Source:
    """Loads images in batches of some size, and counts them."""

    def __init__(self, batch_size=4):
        self.mesh, self.batch_size = sharding.make_mesh(), batch_size
        self.loaded = 0

    def batches(self, examples, rows, transform):
        for batch in loader.eval_batches(
            examples, rows, transform, batch_size=self.batch_size
        ):
            self.loaded += int((batch["row"] >= 0).sum())
            yield batch


def examples_of(*pictures):
    ids = np.array([f"p{row}" for row in range(len(pictures))])
    return ArrayExamples(ids, np.full(len(ids), -1, np.int32), pictures)


def blobs(height, width, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (7, 9, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height)))


def predictor(views=("whole",), cut=None, size=32, model=Answers):
    return PixelPredictor(
        make_abstract_model(model),
        *CHANNELS,
        size,
        views,
        cut,
        sharding.make_mesh(),
    )


def scores(made, pictures, source=None, read=True):
    """{row: float32 [H, W, C], or None where it cannot be read}."""
    source = source or Source()
    found = {}
    examples = examples_of(*pictures)
    for image in made.images(
        source, examples, np.arange(len(pictures)), {}, {}
    ):
        if image.stripes is None:
            found[image.row] = None
        elif read:
            found[image.row] = np.concatenate(list(image.stripes))
            assert found[image.row].shape == (image.height, image.width, C)
    return found


# ---- Resizing ----------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (7, 5), (61, 33), (1, 9), (16, 40)])
def test_enlarged_is_a_bilinear_resize_of_logarithms(size, monkeypatch):
    monkeypatch.setattr(stripes_lib, "STRIPE_PIXELS", 40)  # Several stripes.
    monkeypatch.setattr(stripes_lib, "_ROWS", 3)
    width, height = size
    rng = np.random.default_rng(0)
    outputs = rng.dirichlet(np.ones(C), (16, 16)).astype(np.float32)
    stripes = list(stripes_lib.enlarged(outputs, width, height))
    assert len(stripes) == -(-height // max(1, 40 // width))
    found = np.concatenate(stripes)
    logs = np.log(outputs)
    expected = jax.image.resize(
        logs, (height, width, C), "bilinear", antialias=False
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)
    framed = resized_to_canvas(
        jnp.asarray(logs)[None], jnp.array([size]), (70, 70)
    )
    np.testing.assert_allclose(
        found, np.asarray(framed)[0, :height, :width], atol=1e-4
    )
    if width > 16:
        # For enlarging, Pillow's bilinear and ours are the same.
        for channel in range(C):
            theirs = Image.fromarray(logs[..., channel]).resize(
                size, Image.Resampling.BILINEAR
            )
            np.testing.assert_allclose(
                found[..., channel], np.asarray(theirs), atol=1e-4
            )


def test_joined_windows_are_the_weighted_mean_of_all_that_show_a_pixel():
    size, lefts, tops = 16, (0, 7, 13), (0, 9)
    grid = Grid(29, 25, lefts, tops)
    rng = np.random.default_rng(0)
    outputs = rng.dirichlet(np.ones(C), (len(grid), size, size))
    outputs = outputs.astype(np.float32)
    found = np.concatenate(
        list(stripes_lib.joined_windows(iter(outputs), grid, size))
    )
    expected = np.zeros((25, 29, C))
    places = [(top, left) for top in tops for left in lefts]
    for y in range(25):
        for x in range(29):
            total = 0.0
            for (top, left), window in zip(places, outputs, strict=True):
                down, across = y - top, x - left
                if not (0 <= down < size and 0 <= across < size):
                    continue
                # The density of nnU-Net's filter, sigma an eighth of the side.
                squared = (down - 7.5) ** 2 + (across - 7.5) ** 2
                weight = np.exp(-squared / (2 * (size / 8) ** 2))
                expected[y, x] += weight * window[down, across]
                total += weight
            expected[y, x] /= total
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-3, atol=1e-5)


def test_windows_of_a_large_photo_never_lie_in_memory_together():
    """6 megapixels in 19 classes would be 456 MB."""
    width, height, size, classes = 3000, 2000, 256, 19
    cut = Windows(size, 0.5, size**2 / (width * height))
    grid = cut.grid(width, height)
    assert (grid.width, grid.height) == (width, height)
    one = np.full((size, size, classes), 1 / classes, np.float32)
    one[..., 3] *= 2
    tracemalloc.start()
    lines = stripes_lib.joined_windows(iter([one] * len(grid)), grid, size)
    rows = 0
    for stripe in stripes_lib.resized(lines, width, height, width, height):
        assert stripe.shape[1:] == (width, classes)
        assert stripe[0, 0].argmax() == 3
        rows += len(stripe)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows == height
    band = size * width * classes * 4
    assert peak < 4 * band  # 233 MB, however high the photo is.


# ---- Views -------------------------------------------------------------------


def test_flips_are_turned_back_and_averaged():
    mesh = sharding.make_mesh()
    model = make_abstract_model(Lopsided)
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 8, 6, 3))
    images = images.astype(np.uint8)

    def outputs(*flips):
        step = make_step(model, *CHANNELS, flips, mesh)
        return np.asarray(step({}, {}, images))

    whole, flip, vertical = (False, False), (True, False), (False, True)
    one, flipped = outputs(whole), outputs(flip)
    assert np.abs(one - flipped).max() > 0.1
    np.testing.assert_allclose(
        outputs(whole, flip), (one + flipped) / 2, atol=1e-6
    )
    # What looks at pixels alone does not care about upside down.
    np.testing.assert_allclose(outputs(vertical), one, atol=1e-6)
    np.testing.assert_allclose(one.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("windows", [False, True])
def test_scales_are_averaged_as_probabilities_at_the_photos_size(windows):
    pictures = [blobs(50, 70), blobs(40, 90, 1)]
    cut = Windows(32, 0.5, 0.4) if windows else None
    views = ("whole", "flip", "whole@0.75", "whole@1.5")
    together = scores(predictor(views, cut), pictures)
    alone = {view: scores(predictor((view,), cut), pictures) for view in views}
    for row in range(2):
        expected = np.mean(
            [stripes_lib.softmax(alone[view][row]) for view in views], axis=0
        )
        # The two of one scale are averaged before they are enlarged.
        found = stripes_lib.softmax(together[row])
        assert np.abs(found - expected).max() < 0.05
        assert np.abs(found - expected).mean() < 1e-3
        for view in ("whole@0.75", "whole@1.5"):
            other = np.abs(alone["whole"][row] - alone[view][row])
            assert other.max() > 0.01  # It is another view.


def test_scales_alone_average_exactly():
    pictures = [blobs(50, 70)]
    views = ("whole@0.75", "whole@1.5")
    found = scores(predictor(views), pictures)[0]
    expected = np.mean(
        [
            stripes_lib.softmax(scores(predictor((view,)), pictures)[0])
            for view in views
        ],
        axis=0,
    )
    np.testing.assert_allclose(stripes_lib.softmax(found), expected, atol=1e-5)


# ---- Windows -----------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 96), (33, 120), (7, 200)])
def test_pixel_by_pixel_windows_are_the_image_at_their_scale(shape):
    """A model that looks at single pixels sees no borders."""
    picture = blobs(*shape)
    cut = Windows(32, 0.5, 0.3)
    grid = cut.grid(shape[1], shape[0])
    found = scores(predictor(cut=cut), [picture])[0]
    resized = Image.fromarray(picture).resize(
        (grid.width, grid.height), Image.Resampling.BILINEAR
    )
    logits = np.asarray(resized, np.float32) / 64
    expected = jax.image.resize(
        np.log(stripes_lib.softmax(logits)),
        (*shape, C),
        "bilinear",
        antialias=False,
    )
    assert np.abs(found - np.asarray(expected)).mean() < 0.02


def test_windows_show_what_crops_of_the_last_stage_do():
    config = segmentation_config.base()
    assert resize_rule(config) == "whole"
    assert windows_of("whole", config) is None
    config.segment.windows = 0.25
    config.augment.update(crop_scale=(0.2, 0.4), zoom=(0.5, 2.0))
    config.stages = (common.stage(), common.stage())
    rule = resize_rule(config)
    cut = windows_of(rule, config)
    assert (cut.size, cut.overlap) == (config.image_size, 0.25)
    assert cut.share == pytest.approx(0.3)
    config.stages = (
        common.stage(),
        common.stage(augment={"crop_scale": (0.4, 0.8), "zoom": (2.0, 2.0)}),
    )
    assert windows_of(rule, config).share == pytest.approx(0.6 / 4)
    config.augment.crop_scale, config.stages = (1.0, 1.0), (common.stage(),)
    config.augment.zoom = (0.5, 0.5)  # All of it, and what is around it.
    assert windows_of(rule, config).share == 1


def test_windows_see_the_middle_where_the_edge_of_one_is_wrong():
    """What a window says at its border hardly counts."""
    flat = np.full((64, 256, 3), 100, np.uint8)
    spread = [
        np.ptp(
            stripes_lib.softmax(
                scores(
                    predictor(cut=Windows(32, overlap, 1 / 4), model=Lopsided),
                    [flat],
                )[0]
            )[32, 40:-40, 0]
        )
        for overlap in (0.0, 0.75)
    ]
    assert spread[1] < 0.3 * spread[0]


@pytest.mark.parametrize("cut", [None, Windows(32, 0.5, 0.3)])
@pytest.mark.parametrize("views", [("whole",), ("whole", "flip@0.75")])
def test_bad_images_shift_nothing_and_batches_change_nothing(cut, views):
    good = [blobs(40, 60, seed) for seed in range(3)]
    broken = np.zeros((5, 5), np.uint8)  # No colours.
    pictures = [broken, good[0], broken, good[1], good[2], broken]
    made = predictor(views, cut)
    found = scores(made, pictures, Source(5))
    assert [row for row, own in found.items() if own is None] == [0, 2, 5]
    alone = scores(made, good, Source(1))
    for row, number in ((1, 0), (3, 1), (4, 2)):
        np.testing.assert_allclose(found[row], alone[number], atol=1e-5)


@pytest.mark.parametrize("cut", [None, Windows(32, 0.5, 0.3)])
def test_the_same_batches_are_loaded_whether_stripes_are_read_or_not(cut):
    """Other processes do not read them, and must load in step."""
    made = predictor(("whole", "whole@0.75"), cut)
    pictures = [blobs(90, 40), np.zeros((5, 5), np.uint8), blobs(30, 80)]
    counts = []
    for read in (True, False):
        source = Source(2)
        scores(made, pictures, source, read=read)
        counts.append(source.loaded)
    assert counts[0] == counts[1] > 0


class Fading(Source):
    """Whose photos can be read for some batches, and then no more."""

    def batches(self, examples, rows, transform):
        for number, batch in enumerate(
            super().batches(examples, rows, transform)
        ):
            batch["bad"][:] |= number >= 3
            yield batch


@pytest.mark.parametrize("views", [("whole",), ("whole", "whole@0.75")])
def test_a_photo_that_gets_lost_ends_all_processes_at_one_batch(views):
    """One of them reads stripes, and puts its errors aside until later."""
    made = predictor(views, Windows(32, 0.5, 0.3))
    counts = []
    for read in (True, False):
        source = Fading(2)
        found = made.images(
            source, examples_of(*[blobs(90, 40)] * 3), np.arange(3), {}, {}
        )
        with pytest.raises(UserError, match="read at first"):
            for image in found:
                if read:
                    with pytest.raises(UserError):
                        list(image.stripes)
        counts.append(source.loaded)
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("at_once", [1, 2])
def test_windows_of_few_images_at_once_are_the_same(at_once, monkeypatch):
    made = predictor(cut=Windows(32, 0.5, 0.3))
    pictures = [blobs(40, 60, seed) for seed in range(3)]
    pictures.insert(1, np.zeros((5, 5), np.uint8))
    together = scores(made, pictures)
    monkeypatch.setattr(prediction_lib, "WINDOWED_AT_ONCE", at_once)
    found = scores(made, pictures)
    assert list(found) == list(together) == [0, 1, 2, 3]
    assert found[1] is None
    for row in (0, 2, 3):
        np.testing.assert_allclose(found[row], together[row], atol=1e-6)


def test_the_probabilities_are_those_of_the_mask():
    parts = []
    examples = examples_of(blobs(45, 30))
    for image in predictor().images(Source(), examples, np.arange(1), {}, {}):
        mask = image.mask(parts.append)
    found = np.concatenate(parts)
    assert mask.shape == (45, 30) and mask.dtype == np.uint8
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(found.argmax(-1), mask)
    assert len(np.unique(mask)) == C
