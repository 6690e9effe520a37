"""The segmentation task: scores on the device, and masks at full size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from configs import common
from configs import segmentation as segmentation_config
from core.errors import UserError
from metrics import segmentation
from training.loop.state import make_abstract_model
from training.multihost import sharding
from training.tasks import segment, segmentation_losses
from training.tasks import segmentation_outputs as outputs_lib

C = 3


class Answers(nnx.Module):
    """Gives the logits that stand in the image: channels are classes."""

    def __call__(self, images):
        return images


def constants():
    """Of channels that `mixing.normalize` leaves as they are, 0 to 255."""
    return {"mean": jnp.zeros(3), "std": jnp.full(3, 1 / 255)}


def batch_of(seed, canvas=(40, 50), count=4, side=16):
    """Random logits at side x side, masks of several sizes in a frame."""
    rng = np.random.default_rng(seed)
    frame = np.full((count, *canvas), 255, np.uint8)
    sizes = []
    for row in range(count):
        height, width = rng.integers(5, canvas[0]), rng.integers(5, canvas[1])
        mask = rng.integers(0, C - row % 2, (height, width)).astype(np.uint8)
        mask[rng.random(mask.shape) < 0.1] = 255
        frame[row, :height, :width] = mask
        sizes.append((width, height))
    coarse = rng.integers(0, 256, (count, 1, side // 4, side // 4, C))
    return {
        "image": coarse.repeat(4, 2).repeat(4, 3).astype(np.uint8),
        "mask": frame,
        "mask_size": np.array(sizes, np.int32),
        "weight": np.ones(count, np.float32),
        "bad": np.zeros(count, bool),
    }


def evaluate(batches):
    evaluator = outputs_lib.SegmentationEvaluator(C)
    totals = evaluator.init()
    update = jax.jit(
        lambda totals, batch: evaluator.update(
            totals, Answers(), batch, constants()
        )
    )
    for batch in batches:
        totals = update(totals, batch)
    return evaluator.compute(jax.device_get(totals))


def by_numpy(batches):
    confusions = []
    for batch in batches:
        for row in np.flatnonzero(batch["weight"] * ~batch["bad"]):
            width, height = batch["mask_size"][row].tolist()
            outputs = batch["image"][row, 0].astype(np.float32)
            mask = outputs_lib.full_size_mask(outputs, width, height)
            truth = batch["mask"][row, :height, :width]
            confusions.append(
                segmentation.confusion_matrix(truth, mask, C, 255)
            )
    return segmentation.scores(np.stack(confusions))


def test_the_device_counts_what_numpy_counts_at_full_size():
    batches = [batch_of(seed) for seed in range(3)]
    batches[1]["weight"][2:] = 0  # What fills the last batch up.
    batches[2]["bad"][0] = True
    found, expected = evaluate(batches), by_numpy(batches)
    for name, value in expected.items():
        assert found[f"val_{name}"] == pytest.approx(value, abs=1e-6), name
    assert 0 < found["val_mean_iou"] < found["val_mean_dice"] < 1
    assert found["val_loss"] > 0


def test_counts_go_beyond_32_bits():
    evaluator = outputs_lib.SegmentationEvaluator(C)
    batch = batch_of(0)
    batch["mask"] = np.where(batch["mask"] == 255, 255, 1).astype(np.uint8)
    totals = evaluator.init()
    totals["low"] = np.full((C, C), 2**32 - 5, np.uint32)
    one, zero = (
        evaluator.update(
            *jax.tree.map(jnp.asarray, (start, Answers(), batch, constants()))
        )
        for start in (totals, evaluator.init())
    )
    before = np.int64(2**32 - 5)
    counted = np.asarray(zero["low"], np.int64)
    assert counted[1].max() > 5
    after = np.asarray(one["high"], np.int64) << 32
    after += np.asarray(one["low"], np.int64)
    np.testing.assert_array_equal(after, before + counted)


@pytest.mark.parametrize("size", [(16, 16), (7, 5), (61, 33), (1, 9)])
def test_full_size_is_a_bilinear_resize_before_the_argmax(size, monkeypatch):
    monkeypatch.setattr(outputs_lib, "STRIPE_PIXELS", 40)  # Several stripes.
    width, height = size
    outputs = np.random.default_rng(0).standard_normal((16, 16, C), np.float32)
    if width > 16:
        # For enlarging, Pillow's bilinear and ours are the same.
        channels = [
            np.asarray(
                Image.fromarray(outputs[..., c]).resize(
                    size, Image.Resampling.BILINEAR
                )
            )
            for c in range(C)
        ]
        expected = np.stack(channels, -1).argmax(-1)
    else:
        resized = jax.image.resize(
            outputs, (height, width, C), "bilinear", antialias=False
        )
        expected = np.asarray(resized).argmax(-1)
    found = outputs_lib.full_size_mask(outputs, width, height)
    assert found.shape == (height, width)
    assert found.dtype == np.uint8
    assert (found == expected).mean() > 0.999
    framed = outputs_lib.resized_to_canvas(
        jnp.asarray(outputs)[None], jnp.array([size]), (70, 70)
    )
    inside = np.asarray(framed)[0, :height, :width].argmax(-1)
    assert (found == inside).mean() > 0.999


class Lopsided(nnx.Module):
    """Prefers class 0 towards the left of what it sees, whatever that is."""

    def __call__(self, images):
        ramp = jnp.linspace(2, -2, images.shape[2])[None, None, :, None]
        first = jnp.array([1.0, 0.0, 0.0])
        return images / 255 + ramp * first


def test_flips_are_turned_back_and_averaged():
    mesh = sharding.make_mesh()
    model = make_abstract_model(Lopsided)
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 8, 6, 3))
    images = images.astype(np.uint8)
    channels = np.zeros(3), np.full(3, 1 / 255)

    def outputs(*views):
        step = outputs_lib.make_mask_step(model, *channels, views, mesh)
        return np.exp(np.asarray(step({}, {}, images)))

    one, flipped = outputs("whole"), outputs("flip")
    assert np.abs(one - flipped).max() > 0.1
    np.testing.assert_allclose(
        outputs("whole", "flip"), (one + flipped) / 2, atol=1e-6
    )
    # What looks at pixels alone does not care about upside down.
    np.testing.assert_allclose(outputs("flip_vertical"), one, atol=1e-6)
    np.testing.assert_allclose(one.sum(-1), 1, atol=1e-5)


def test_class_weights_are_named_or_given():
    weights = segmentation_losses.class_weights
    prior = np.array([0.9, 0.1]), np.array([0.9, 0.2])
    assert weights("", *prior).tolist() == [1, 1]
    np.testing.assert_allclose(
        weights("median", *prior),
        [0.55 / 0.9, 0.55 / 0.2],
    )
    np.testing.assert_allclose(
        weights("inverse", *prior),
        [0.5 / 0.9, 0.5 / 0.1],
    )
    np.testing.assert_allclose(
        weights("0.1, 1.2", *prior),
        [0.1, 1.2],
        rtol=1e-6,
    )
    with pytest.raises(UserError, match="3 numbers and the data 2 classes"):
        segmentation_losses.class_weights("1,1,1", *prior)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"segment.class_weights": "medain"}, "median, sqrt_median, inverse"),
        ({"segment.class_weights": "1,-1"}, "a number for each class"),
        ({"mixing.prob": 0.5, "mixing.mixup_prob": 0.5}, "MixUp leaves no"),
        ({"eval.tta": ("center",)}, "choose from whole, flip"),
        ({"checkpoint.metric": "val_macro_f1"}, "has val_mean_dice"),
    ],
)
def test_wrong_fields_are_told(changes, words):
    config = segmentation_config.base()
    config.stages = (common.stage(),)
    config.update_from_flattened_dict(changes)
    problems = list(segment.Segmentation.problems(config))
    assert len(problems) == 1
    assert words in problems[0]


def test_a_wrong_loss_is_told():
    config = segmentation_config.base()
    config.stages = (common.stage(loss="dice+jaccard"),)
    (problem,) = segment.Segmentation.problems(config)
    assert (
        "'jaccard': choose from cross_entropy, focal, dice, lovasz" in problem
    )


def test_a_classifier_is_no_segmentation_network():
    config = segmentation_config.base()
    config.model = "miniconvnext_demo"
    config.stages = (common.stage(),)
    with pytest.raises(UserError, match="encoder=miniconvnext"):
        segment.Segmentation(config, ("ground", "crack"))


def test_masks_of_equal_names_do_not_overwrite_each_other():
    ids = ["p0", "val/p1", "cityA/p0", "cityB/p0"]
    names = [segment._mask_name("val", image_id) for image_id in ids]
    assert names == [
        "masks/val/p0.png",
        "masks/val/p1.png",
        "masks/val/cityA/p0.png",
        "masks/val/cityB/p0.png",
    ]
