"""Networks that generate: shapes, what they start as, what they listen to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_models
from core.errors import UserError
from jax_models import flow_unet
from jax_models.velocity import velocity_to

SMALL = {
    "flow_unet": {
        "width": 16,
        "multipliers": (1, 2),
        "blocks": 1,
        "attention": (1,),
        "head_width": 16,
    },
    "dit": {"width": 16, "depth": 2, "heads": 2},
}


COUNT, SIZE = 4, 8


def make(name, **options):
    options = {**SMALL[name], **options}
    return jax_models.create_model(name, 3, **options)


@functools.cache
def loud(name, remat=False):
    """The velocity of a network whose weights are all drawn at random, also
    those that start at 0; compiled."""
    graphdef, params, rest = nnx.split(
        nnx.eval_shape(lambda: make(name, dropout=0.0, remat=remat)),
        nnx.Param,
        ...,
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32),
        params,
    )

    @jax.jit
    def velocity(noisy, time, label, augmentation):
        model = nnx.merge(graphdef, params, rest)
        return model(noisy, time, label, augmentation)

    return velocity


def inputs():
    noisy = jax.random.normal(jax.random.key(1), (COUNT, SIZE, SIZE, 3))
    time = jnp.linspace(0.1, 0.9, COUNT)
    label = jnp.arange(COUNT, dtype=jnp.int32) % 3
    return noisy, time, label, jnp.zeros((COUNT, 10))


@pytest.mark.parametrize("name", SMALL)
def test_a_new_network_takes_all_for_noise_on_grey(name):
    noisy, time, label, none = inputs()
    time = time.at[0].set(0.01)
    velocity = jax.jit(lambda *given: make(name)(*given))(
        noisy, time, label, none
    )
    assert velocity.shape == (COUNT, SIZE, SIZE, 3)
    assert velocity.dtype == jnp.float32
    # Of the image 0; within 0.05 of the end no steeper than there.
    expected = noisy / jnp.maximum(time, 0.05)[:, None, None, None]
    np.testing.assert_allclose(velocity, expected, rtol=1e-5)


def test_the_velocity_to_the_true_image_is_noise_minus_image():
    image, noise = inputs()[0], 2 * inputs()[0][::-1]
    time = jnp.array([0.06, 0.3, 0.7, 1.0])
    along = time[:, None, None, None]
    noisy = (1 - along) * image + along * noise
    np.testing.assert_allclose(
        velocity_to(image, noisy, time), noise - image, atol=1e-5
    )


@pytest.mark.parametrize("name", SMALL)
def test_each_condition_changes_the_velocity_of_its_row_alone(name):
    velocity = loud(name)
    noisy, time, label, none = inputs()
    before = velocity(noisy, time, label, none)
    others = {
        "image": (noisy.at[2].add(1.0), time, label, none),
        "time": (noisy, time.at[2].set(0.05), label, none),
        "class": (noisy, time, label.at[2].set(0), none),
        "no class": (noisy, time, label.at[2].set(3), none),
        "augmentation": (noisy, time, label, none.at[2, 3].set(1.0)),
    }
    for what, given in others.items():
        changed = np.abs(velocity(*given) - before).max((1, 2, 3))
        assert changed[2] > 1e-3, f"{name} does not hear the {what}"
        assert changed[[0, 1, 3]].max() < 1e-4, f"{what} of row 2 leaks"


@pytest.mark.parametrize("name", SMALL)
def test_no_augmentation_is_all_zeros(name):
    velocity, (*given, none) = loud(name), inputs()
    np.testing.assert_allclose(
        velocity(*given, none), velocity(*given, None), atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_remat_changes_no_number(name):
    plain, again = (loud(name, remat)(*inputs()) for remat in (False, True))
    np.testing.assert_allclose(plain, again, atol=1e-5)


def test_images_of_a_wrong_size_are_refused():
    model = nnx.eval_shape(lambda: make("dit"))
    with pytest.raises(UserError, match="multiples of 4, not 6 x 6"):
        model.check_size(6, 6)


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(UserError, match="16 channels cannot have 3 heads"):
        make("dit", heads=3)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("dit", "patch", 0),
        ("dit", "heads", 0),
        ("dit", "depth", 0),
        ("flow_unet", "patch", 0),
        ("flow_unet", "width", 0),
        ("flow_unet", "head_width", 0),
        ("flow_unet", "multipliers", ()),
        ("flow_unet", "multipliers", (1, 0)),
    ],
)
def test_a_count_below_1_is_refused(name, option, value):
    with pytest.raises(UserError, match=f"{name} has {option}=0; take 1"):
        make(name, **{option: value})


def test_the_published_sizes():
    """DiT-S/4 has 33 M parameters (Peebles & Xie), of which a third are the
    matrices of the condition."""

    def count(name):
        model = nnx.eval_shape(lambda: jax_models.create_model(name, 16))
        state = nnx.state(model, nnx.Param)
        return sum(leaf.size for leaf in jax.tree.leaves(state))

    assert 30e6 < count("dit") < 35e6
    assert count("flow_unet_small") < 3e6 < count("flow_unet") < 20e6
    assert set(SMALL) < set(jax_models.list_generation_models())


def test_group_norm_is_over_16_channels_and_the_map():
    norm = flow_unet.GroupNorm(32, dtype=jnp.float32)
    rng = np.random.default_rng(0)
    norm.scale[...], norm.bias[...] = jnp.asarray(rng.normal(size=(2, 32)))
    x = 3 + rng.normal(size=(2, 4, 5, 32)).astype(np.float32)
    groups = x.reshape(2, 20, 2, 16)
    mean = groups.mean((1, 3), keepdims=True)
    std = np.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)
    normal = ((groups - mean) / std).reshape(x.shape)
    expected = normal * norm.scale[...] + norm.bias[...]
    found = jax.jit(norm)(jnp.asarray(x))
    np.testing.assert_allclose(found, expected, atol=1e-5)
