"""The segmentation task: scores on the device, and masks at full size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import common
from configs import segmentation as segmentation_config
from core.errors import UserError
from metrics import segmentation
from run_folder import layout
from training.tasks import segment, segmentation_losses
from training.tasks import segmentation_evaluator as evaluator_lib

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
    evaluator = evaluator_lib.SegmentationEvaluator(C)
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
            resized = jax.image.resize(
                outputs, (height, width, C), "bilinear", antialias=False
            )
            mask = np.asarray(resized).argmax(-1)
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
    evaluator = evaluator_lib.SegmentationEvaluator(C)
    batch = batch_of(0)
    batch["mask"] = np.where(batch["mask"] == 255, 255, 1).astype(np.uint8)
    totals = evaluator.init()
    totals["low"] = np.full((C, C), 2**32 - 5, np.uint32)

    @jax.jit
    def update(start, batch):
        return evaluator.update(start, Answers(), batch, constants())

    one, zero = (update(start, batch) for start in (totals, evaluator.init()))
    before = np.int64(2**32 - 5)
    counted = np.asarray(zero["low"], np.int64)
    assert counted[1].max() > 5
    after = np.asarray(one["high"], np.int64) << 32
    after += np.asarray(one["low"], np.int64)
    np.testing.assert_array_equal(after, before + counted)


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
        ({"eval.tta": ("flipp@0.5",)}, "did you mean flip@0.5?"),
        ({"eval.tta": ("whole@x",)}, "a scale from 0.25 to 4"),
        ({"eval.tta": ("whole@nan",)}, "a scale from 0.25 to 4"),
        ({"eval.tta": ("whole@9",)}, "a scale from 0.25 to 4"),
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
    ids = ["p0", "val/p1", "train/p1", "cityA/p0", "cityB/p0"]
    names = [
        layout.image_file("masks", "val", image_id, ".png") for image_id in ids
    ]
    assert names == [
        "masks/val/p0.png",
        "masks/val/p1.png",
        "masks/val/train/p1.png",
        "masks/val/cityA/p0.png",
        "masks/val/cityB/p0.png",
    ]
    # A folder of new images that is called val.
    assert layout.image_file("masks", "test", "val/p0", ".png") == (
        "masks/test/val/p0.png"
    )
