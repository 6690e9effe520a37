from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.class_colours import IGNORE
from core.errors import UserError
from input_pipeline.sources.base import Kind
from input_pipeline.transforms import mixing
from input_pipeline.transforms.mixing import Mixing

BATCH, SIDE, CLASSES = 8, 12, 8
KEYS = st.integers(0, 2**32 - 1).map(jax.random.key)
KINDS = {
    "mixup": Mixing(mixup_prob=1.0),
    "cutmix": Mixing(mixup_prob=0.0),
    "either": Mixing(mixup_prob=0.5, prob=0.7),
    "alpha .4": Mixing(mixup_alpha=0.4, cutmix_alpha=0.4),
}


@functools.partial(jax.jit, static_argnums=0)
def mixed(settings, key, mask):
    """Image b is constantly b, so a pixel tells whose it is."""
    images = jnp.broadcast_to(
        jnp.arange(BATCH, dtype=jnp.float32)[:, None, None, None],
        (BATCH, SIDE, SIDE, 3),
    )
    features = {"image": images, "label": jnp.eye(BATCH)}
    kinds = {"image": Kind.IMAGE, "label": Kind.LABEL}
    found, weight = mixing.mix(features, kinds, settings, key, mask)
    return found["image"], found["label"], weight


@pytest.mark.parametrize("kind", KINDS)
@given(key=KEYS, mask=st.lists(st.booleans(), min_size=BATCH, max_size=BATCH))
@settings(max_examples=40, deadline=None)
def test_labels_sum_to_one_and_lambda_is_the_pixel_share(kind, key, mask):
    mask = np.array(mask, np.float32)
    images, targets, weight = map(np.asarray, mixed(KINDS[kind], key, mask))
    np.testing.assert_array_equal(weight, mask)
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
    assert targets.min() >= 0
    for row in range(BATCH):
        partner = (row - 1) % BATCH
        share = targets[row, row]
        assert targets[row, partner] == pytest.approx(1 - share, abs=1e-6)
        # The image's mean is the mean of the two values, weighted by their
        # shares of the pixels: lambda must be exactly that share.
        expected = share * row + (1 - share) * partner
        np.testing.assert_allclose(images[row].mean(), expected, atol=1e-4)
        if mask[row] == 0 or mask[partner] == 0:
            assert share == 1
            assert (images[row] == row).all()


@given(key=KEYS)
@settings(max_examples=40, deadline=None)
def test_cutmix_pastes_one_rectangle(key):
    images, targets, _ = map(
        np.asarray, mixed(KINDS["cutmix"], key, np.ones(BATCH, np.float32))
    )
    pasted = images[3, :, :, 0] == 2
    assert ((images[3, :, :, 0] == 3) | pasted).all()
    assert pasted.sum() == round((1 - targets[3, 3]) * SIDE * SIDE)
    rows, columns = pasted.any(axis=1), pasted.any(axis=0)
    np.testing.assert_array_equal(pasted, rows[:, None] & columns)
    assert (np.diff(np.flatnonzero(rows)) == 1).all()


@pytest.mark.parametrize("kind", KINDS)
@given(
    key=KEYS,
    weight=st.lists(
        st.sampled_from((0.0, 0.1, 1.0, 2.0)), min_size=BATCH, max_size=BATCH
    ),
)
@settings(max_examples=40, deadline=None)
def test_what_each_counts_in_the_loss_goes_with_its_pixels(kind, key, weight):
    """Of a weighted loss, an image gets its pixels' share of its weight."""
    weight = np.array(weight, np.float32)
    images, targets, after = map(np.asarray, mixed(KINDS[kind], key, weight))
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
    for row in range(BATCH):
        partner = (row - 1) % BATCH
        # Image b is constantly b, so its mean tells lambda; 0 has partner 7.
        share = (images[row].mean() - partner) / (row - partner)
        counted = np.zeros(BATCH)
        counted[row] += share * weight[row]
        counted[partner] += (1 - share) * weight[partner]
        np.testing.assert_allclose(
            after[row] * targets[row], counted, atol=1e-4
        )


def draw_many(settings, count=300):
    """Lambda of row 1 under many keys."""
    mask = np.ones(BATCH, np.float32)
    keys = jax.random.split(jax.random.key(0), count)
    return np.array(
        jax.vmap(lambda key: mixed(settings, key, mask)[1][1, 1])(keys)
    )


def test_lambda_is_beta_distributed():
    uniform = draw_many(Mixing(mixup_prob=1.0, mixup_alpha=1.0))
    assert uniform.mean() == pytest.approx(0.5, abs=0.06)
    assert uniform.var() == pytest.approx(1 / 12, abs=0.02)
    # Beta(a, a) has variance 1 / (8 a + 4).
    wide = draw_many(Mixing(mixup_prob=1.0, mixup_alpha=0.2))
    assert wide.var() == pytest.approx(1 / 5.6, abs=0.03)


def test_probabilities_are_kept():
    sometimes = draw_many(Mixing(mixup_prob=1.0, prob=0.3))
    assert (sometimes < 1).mean() == pytest.approx(0.3, abs=0.09)
    mask = np.ones(BATCH, np.float32)
    keys = jax.random.split(jax.random.key(1), 300)
    settings = Mixing(mixup_prob=0.25)
    images = np.asarray(
        jax.vmap(lambda key: mixed(settings, key, mask)[0][1])(keys)
    )
    fractional = (images % 1 > 0).any(axis=(1, 2, 3))
    assert fractional.mean() == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize(
    "settings",
    [Mixing(prob=0.0), Mixing(prob=0.0, erase_prob=1.0)],
)
def test_mixing_can_be_turned_off(settings):
    _, targets, _ = mixed(settings, jax.random.key(0), np.ones(BATCH))
    np.testing.assert_array_equal(targets, np.eye(BATCH))


SEGMENTED = {"image": Kind.IMAGE, "mask": Kind.MASK, "who": Kind.ID}


def segmented_batch():
    """Masks hold what the images do; some pixels count for nothing."""
    masks = np.arange(BATCH, dtype=np.uint8)[:, None, None] + np.zeros(
        (BATCH, SIDE, SIDE), np.uint8
    )
    masks[:, 0] = 255
    images = np.repeat(masks[..., None], 3, axis=-1).astype(np.float32)
    return {"image": images, "mask": masks, "who": np.arange(BATCH)}


@given(key=KEYS)
@settings(max_examples=30, deadline=None)
def test_cutmix_pastes_the_same_box_of_image_and_mask(key):
    batch, cutmix = segmented_batch(), Mixing(mixup_prob=0.0)
    found, _ = mixing.mix(batch, SEGMENTED, cutmix, key, np.ones(BATCH))
    assert found["mask"].dtype == np.uint8
    for channel in range(3):
        np.testing.assert_array_equal(
            found["image"][..., channel], found["mask"]
        )
    np.testing.assert_array_equal(found["who"], batch["who"])


def test_cutmix_of_masks_leaves_unreadable_partners_out():
    weight = np.ones(BATCH, np.float32)
    weight[3] = 0
    batch, cutmix = segmented_batch(), Mixing(mixup_prob=0.0, cutmix_alpha=9.0)
    key = jax.random.key(1)
    found, after = mixing.mix(batch, SEGMENTED, cutmix, key, weight)
    np.testing.assert_array_equal(after, weight)
    changed = (np.asarray(found["mask"]) != batch["mask"]).any(axis=(1, 2))
    np.testing.assert_array_equal(
        changed, [row not in (3, 4) for row in range(BATCH)]
    )


def test_mixup_of_masks_is_refused_in_one_sentence():
    with pytest.raises(UserError, match=r"--config\.mixing\.mixup_prob=0"):
        mixing.mix(
            segmented_batch(),
            SEGMENTED,
            Mixing(),
            jax.random.key(0),
            np.ones(BATCH),
        )


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_erased_pixels_of_a_mask_are_ignored(dtype):
    batch = segmented_batch()
    batch["mask"] = np.zeros_like(batch["mask"], dtype)
    batch["image"][:] = 100
    always = Mixing(erase_prob=1.0)
    found = mixing.erase(batch, SEGMENTED, always, jax.random.key(0))
    assert found["mask"].dtype == dtype
    hole = (found["image"] != 100).any(axis=-1)
    assert hole.any()
    np.testing.assert_array_equal(found["mask"], np.where(hole, IGNORE, 0))
    np.testing.assert_array_equal(found["who"], batch["who"])


def test_normalize_is_the_textbook_formula():
    images = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3) * 20
    mean = np.array([0.4638, 0.4522, 0.4148], np.float32)
    std = np.array([0.2222, 0.2198, 0.2176], np.float32)
    result = mixing.normalize(images, mean, std)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(
        result, (images / 255.0 - mean) / std, rtol=1e-5, atol=1e-5
    )


def test_erasing_fills_rectangles_of_the_promised_size_with_noise():
    settings = Mixing(erase_prob=0.5)
    images = jnp.full((400, 40, 50, 3), 100.0)
    erased = np.asarray(
        jax.jit(
            lambda images, key: mixing.erase(
                {"image": images}, {"image": Kind.IMAGE}, settings, key
            )["image"]
        )(images, jax.random.key(2))
    )
    holes = (erased != 100).all(axis=-1)
    np.testing.assert_array_equal(holes, (erased != 100).any(axis=-1))
    share = holes.mean(axis=(1, 2))
    touched = share > 0
    assert touched.mean() == pytest.approx(0.5, abs=0.08)
    low, high = settings.erase_area
    assert share[touched].min() > low * 0.85
    assert share[touched].max() < high * 1.15
    assert share[touched].mean() == pytest.approx((low + high) / 2, rel=0.1)
    for hole in holes[touched]:
        rows, columns = hole.any(axis=1), hole.any(axis=0)
        np.testing.assert_array_equal(hole, rows[:, None] & columns)
        ratio = rows.sum() / columns.sum()
        assert 0.25 < ratio < 4
    noise = erased[holes]
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.02)


def test_erasing_noise_is_independent_and_normal():
    noise = np.asarray(
        mixing._normal(jax.random.key(0), (64, 32, 32, 3))
    ).astype(np.float64)
    count = noise.size
    assert abs(noise.mean()) < 4 / np.sqrt(count)
    assert abs(noise.var() - 1) < 4 * np.sqrt(2 / count)
    assert abs((noise**4).mean() - 3) < 4 * np.sqrt(96 / count)
    for left, right in [
        (noise[1:], noise[:-1]),
        (noise[:, 1:], noise[:, :-1]),
        (noise[:, :, 1:], noise[:, :, :-1]),
        (noise[..., 1:], noise[..., :-1]),
    ]:
        product = (left * right).mean()
        assert abs(product) < 4.5 / np.sqrt(left.size)
    other = mixing._normal(jax.random.key(1), (64, 32, 32, 3))
    assert abs((noise * np.asarray(other)).mean()) < 4 / np.sqrt(count)


def test_prepare_train_puts_it_together():
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (4, 8, 8, 3)).astype(np.uint8),
        "label": np.array([0, 2, 1, 2], np.int32),
        "weight": np.array([1, 1, 0, 1], np.float32),
    }
    plain = Mixing(prob=0.0, erase_prob=0.0)
    mean, std = np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32)
    key = jax.random.key(0)
    images, targets, weights = mixing.prepare_train(
        batch, plain, mean, std, 3, key
    )
    np.testing.assert_allclose(
        images, (batch["image"] / 255.0 - 0.5) / 0.25, atol=1e-5
    )
    np.testing.assert_array_equal(targets, np.eye(3)[[0, 2, 1, 2]])
    np.testing.assert_array_equal(weights, [1, 1, 0, 1])

    full = dataclasses.replace(plain, prob=1.0, erase_prob=1.0)
    prepare = jax.jit(mixing.prepare_train, static_argnums=(1, 4))
    one = prepare(batch, full, mean, std, 3, key)
    same = prepare(batch, full, mean, std, 3, key)
    other = prepare(batch, full, mean, std, 3, jax.random.key(1))
    for left, right in zip(one, same, strict=True):
        np.testing.assert_array_equal(left, right)
    assert not np.array_equal(one[0], other[0])
    # Rows 2 (no image) and 3 (whose partner is row 2) keep their labels.
    np.testing.assert_array_equal(one[1][2:], np.eye(3)[[1, 2]])
