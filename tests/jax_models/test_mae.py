"""What a masked autoencoder may see, and that it learns."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jax_models
from core.errors import UserError
from jax_models import mae

SIZE, UNIT, UNITS = 64, 32, (2, 2)

# Encoders and what they hide at once, their last stride.
ENCODERS = {
    "tinyvit_demo": 32,
    "convnextv2_demo": 32,
    "efficientnetv2_demo": 16,
    "miniconvnext_demo": 16,
}


@functools.cache
def split(name):
    """An autoencoder's graph, parameters and rest, in training mode."""

    @jax.jit
    def init(key):
        rngs = nnx.Rngs(key)
        encoder = jax_models.create_model(name, 4, rngs, drop_path_rate=0.0)
        model = mae.MaskedAutoencoder(
            encoder, width=64, depth=2, heads=4, mlp_width=128, rngs=rngs
        )
        return nnx.split(model, nnx.Param, ...)

    return init(jax.random.key(0))


@functools.cache
def applier(name, training):
    """The autoencoder as a compiled function of images and mask."""
    model = nnx.merge(*split(name), copy=True)
    if not training:
        model.eval()
    graphdef, state = nnx.split(model)
    return jax.jit(lambda *args: nnx.merge(graphdef, state, copy=True)(*args))


@pytest.fixture(params=ENCODERS)
def encoder(request, quick_compilation):
    return request.param


@pytest.fixture
def apply(encoder):
    """`apply(images, mask)`, in evaluation mode."""
    return applier(encoder, training=False)


@pytest.fixture
def own_mask(encoder):
    """A mask in the encoder's own units."""
    side = SIZE // ENCODERS[encoder]
    return mae.random_mask(jax.random.key(1), 3, (side, side), 0.5)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return rng.standard_normal((3, SIZE, SIZE, 3)).astype(np.float32)


@pytest.fixture
def mask():
    return mae.random_mask(jax.random.key(1), 3, UNITS, 0.5)


def pixels_of(mask):
    unit = SIZE // mask.shape[1]
    return np.repeat(np.repeat(mask, unit, 1), unit, 2)


@pytest.mark.parametrize("training", [False, True])
def test_hidden_pixels_change_nothing(encoder, training, images, own_mask):
    apply = applier(encoder, training)
    changed = np.where(pixels_of(own_mask)[..., None], np.nan, images)
    before, after = apply(images, own_mask), apply(changed, own_mask)
    assert np.isfinite(before).all()
    np.testing.assert_array_equal(before, after)


def test_visible_pixels_matter(apply, images, own_mask):
    changed = np.where(pixels_of(own_mask)[..., None], images, images + 1)
    assert not np.allclose(apply(images, own_mask), apply(changed, own_mask))


def test_other_images_of_the_batch_do_not_matter(apply, images, own_mask):
    changed = images.copy()
    changed[1] += 5
    before, after = apply(images, own_mask), apply(changed, own_mask)
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[2], after[2])
    assert not np.allclose(before[1], after[1])


@pytest.mark.parametrize("normalize", [False, True])
def test_only_hidden_units_are_scored(images, mask, normalize):
    rng = np.random.default_rng(1)
    shape = (3, *UNITS, UNIT * UNIT * 3)
    predictions = jnp.asarray(rng.standard_normal(shape))
    score = functools.partial(
        mae.reconstruction_loss, normalize_targets=normalize
    )
    images = jnp.asarray(images)
    visible = jnp.where(pixels_of(mask)[..., None], images, images * 2 + 1)
    hidden = jnp.where(pixels_of(mask)[..., None], images * images, images)
    before = score(predictions, images, mask)
    assert score(predictions, visible, mask) == before
    assert score(predictions, hidden, mask) != before


def test_weights_leave_images_out(images, mask):
    predictions = jnp.zeros((3, *UNITS, UNIT * UNIT * 3))
    weights = jnp.array([1.0, 0.0, 1.0])
    images = jnp.asarray(images).at[1].set(1e6)
    loss = mae.reconstruction_loss(predictions, images, mask, weights=weights)
    assert loss < 2


@pytest.mark.parametrize(
    ("units", "ratio", "hidden"),
    [((7, 7), 0.75, 37), ((2, 2), 0.75, 3), ((1, 3), 0.9, 2), ((4, 4), 0.0, 1)],
)
def test_every_image_has_the_same_number_hidden(units, ratio, hidden):
    mask = mae.random_mask(jax.random.key(0), 50, units, ratio)
    assert mask.shape == (50, *units)
    np.testing.assert_array_equal(mask.sum((1, 2)), hidden)
    if mask[0].size > 2:
        assert len(np.unique(np.asarray(mask).reshape(50, -1), axis=0)) > 1


def test_patches_join_to_the_image(images):
    patches = mae.patchify(images, UNIT)
    assert patches.shape == (3, *UNITS, UNIT * UNIT * 3)
    np.testing.assert_array_equal(mae.unpatchify(patches, UNIT), images)
    first = images[0, :UNIT, UNIT:].ravel()
    np.testing.assert_array_equal(patches[0, 0, 1], first)


def test_a_tiny_set_is_learnt_by_heart(images, mask):
    """Smooth images, so that the few hidden pixels fit a small decoder."""
    graphdef, params, rest = split("convnextv2_demo")
    ramps = np.linspace(-1, 1, SIZE)[:, None, None]
    smooth = np.sin(3 * ramps + images[:, :1, :1]) * images[:, 1:2, 1:2]
    smooth = jnp.broadcast_to(smooth, images.shape).astype(np.float32)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 200))

    def loss(params):
        model = nnx.merge(graphdef, params, rest, copy=True)
        return mae.reconstruction_loss(model(smooth, mask), smooth, mask)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            value, grads_of = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(grads_of, state, params)
            return (optax.apply_updates(params, updates), state), value

        carry = params, optimizer.init(params)
        return jax.lax.scan(step, carry, length=200)[1]

    losses = train(params)
    assert losses[0] > 0.1
    assert losses[-1] < 0.01 * losses[0]


def test_the_picture_shows_three_images(images, mask):
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.2, 0.2])
    for normalize in (False, True):
        patches = np.asarray(mae.patchify(images, UNIT))
        if normalize:
            deviation = np.sqrt(patches.var(-1, keepdims=True) + 1e-6)
            patches = (patches - patches.mean(-1, keepdims=True)) / deviation
        shown = mae.picture(
            images,
            mask,
            patches,
            mean=mean,
            std=std,
            normalize_targets=normalize,
        )
        assert shown.dtype == np.uint8
        assert shown.shape == (3 * SIZE, 3 * SIZE, 3)
        original, masked, painted = np.split(shown.astype(int), 3, 1)
        # The predictions were the truth.
        assert np.abs(original - painted).max() <= 1
        hidden = pixels_of(mask).reshape(3 * SIZE, SIZE)
        assert (masked[hidden] == 128).all()
        np.testing.assert_array_equal(masked[~hidden], original[~hidden])


@pytest.mark.parametrize("size", [(32, 32), (64, 80), (40, 64)])
def test_sizes_that_do_not_divide_are_refused(size):
    with pytest.raises(UserError, match="multiple of 32"):
        mae.units_of(size, 32)
