"""Flows with known answers, noise, guidance and augmentation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_models.velocity import velocity_to
from training.tasks import flow_augmentation, flow_sampling


def normal(count=4, seed=0):
    return jax.random.normal(jax.random.key(seed), (count, 4, 4, 3))


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_a_straight_flow_is_followed_exactly(sampler):
    """The velocity to a single image is noise - image, all the way."""
    start, image = normal(), normal(seed=1)
    velocity = lambda x, time: start - image  # noqa: E731
    for steps in (1, 3):
        end = flow_sampling.follow(velocity, start, sampler, steps)
        np.testing.assert_allclose(end, image, atol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_a_network_that_knows_the_image_ends_on_it(sampler, guidance):
    """Also by many steps, of which the last have the shortened velocity."""
    start, image = normal(), normal(seed=1)

    def model(x, time, label):
        return velocity_to(jnp.repeat(image, len(x) // 4, axis=0), x, time)

    model.num_classes = 3
    labels = jnp.zeros(4, jnp.int32)
    velocity = flow_sampling.guided(model, labels, guidance)
    for steps in (5, 50, 100):
        end = flow_sampling.follow(velocity, start, sampler, steps)
        np.testing.assert_allclose(end, image, atol=1e-4)


def gaussian_velocity(deviation):
    """Of N(0, deviation²): E[noise - image | x] in closed form."""

    def velocity(x, time):
        time = time[:, None, None, None]
        variance = (1 - time) ** 2 * deviation**2 + time**2
        return x * (time - (1 - time) * deviation**2) / variance

    return velocity


def test_the_flow_of_a_gaussian_and_the_orders_of_the_samplers():
    """Its end is deviation * noise; Euler's error falls with the steps, that
    of Heun with their square."""
    start, deviation = normal(), 0.3

    def error(sampler, steps):
        velocity = gaussian_velocity(deviation)
        end = flow_sampling.follow(velocity, start, sampler, steps)
        return float(jnp.abs(end - deviation * start).mean())

    euler = [error("euler", steps) for steps in (20, 40)]
    heun = [error("heun", steps) for steps in (20, 40)]
    assert 1.7 < euler[0] / euler[1] < 2.4
    assert heun[0] / heun[1] > 3
    assert heun[0] < euler[0] / 3


def test_noise_is_of_seed_class_and_index_alone():
    noise = jax.jit(flow_sampling.noise, static_argnames="size")
    labels = jnp.arange(64, dtype=jnp.int32) % 3
    indices = jnp.arange(64, dtype=jnp.int32) // 3
    whole = np.asarray(noise(7, labels, indices, size=4))
    moved = np.asarray(noise(7, labels[::-1], indices[::-1], size=4))
    np.testing.assert_array_equal(whole, moved[::-1])
    assert len(np.unique(whole[:, 0, 0, 0])) == 64
    assert (whole != noise(8, labels, indices, size=4)).mean() > 0.99
    assert abs(whole.mean()) < 0.05 and abs(whole.std() - 1) < 0.05


class Named:
    """A velocity that is its label, and 10 for any class."""

    num_classes = 3

    def __call__(self, x, time, label):
        value = jnp.where(label == 3, 10.0, label.astype(float))
        return jnp.broadcast_to(value[:, None, None, None], x.shape)


@pytest.mark.parametrize(
    "guidance, expected", [(0, [10, 10]), (1, [0, 2]), (2, [-10, -6])]
)
def test_guidance_extrapolates_from_any_class(guidance, expected):
    label = jnp.array([0, 2], jnp.int32)
    velocity = flow_sampling.guided(Named(), label, guidance)
    found = velocity(jnp.zeros((2, 1, 1, 3)), jnp.ones(2))
    np.testing.assert_allclose(found[:, 0, 0, 0], expected)


# Compiled once for all tests: 512 images of 16 x 16.
AUGMENT = jax.jit(flow_augmentation.augment)


def augmented(images, prob, flip, seed=0):
    """The changed images and the parameters of the change, as NumPy."""
    images = np.broadcast_to(images, (512, 16, 16, 3)).astype(np.float32)
    found = AUGMENT(images, jax.random.key(seed), prob=prob, flip=flip)
    return images, *map(np.asarray, found)


def smooth():
    rows = np.linspace(-0.5, 0.5, 16)
    return (
        np.sin(3 * rows)[:, None, None] * np.cos(2 * rows + 0.5)[None, :, None]
    )


def test_no_augmentation_changes_nothing():
    images, same, told = augmented(smooth(), 0.0, 0.0)
    np.testing.assert_allclose(same, images, atol=1e-5)
    np.testing.assert_array_equal(told, 0)


def test_what_is_done_is_told_and_as_often_as_asked():
    images, changed, told = augmented(smooth(), 0.5, 0.25)
    moved = np.abs(changed - images).max((1, 2, 3))
    # Images with parameters of zero are unchanged, and only these.
    untouched = (told == 0).all(1)
    assert moved[untouched].max(initial=0) < 1e-5
    assert moved[~untouched].min() > 1e-5
    often = (told != 0).mean(0)
    assert abs(often[0] - 0.25) < 0.1
    np.testing.assert_allclose(often[1:], 0.5, atol=0.12)


def test_the_augmentation_moves_as_it_says():
    """A shift down moves a bright row down by as many pixels."""
    images = np.full((16, 16, 1), -1.0)
    images[8] = 1.0
    _, changed, told = augmented(images, 0.2, 0.0, seed=3)
    alone = (told[:, 6] != 0) & ((told != 0).sum(1) == 1)
    assert alone.any()
    for image, row in zip(changed[alone], told[alone], strict=True):
        weight = image[:, 8, 0] + 1
        middle = (weight * np.arange(16)).sum() / weight.sum()
        expected = 8 + row[6] * flow_augmentation.SHIFT * 16
        if 1 < expected < 14:
            assert abs(middle - expected) < 0.15


def test_brightness_and_contrast_are_told():
    _, changed, told = augmented(0.2, 0.5, 0.5, seed=1)
    expected = 0.2 * 2 ** (flow_augmentation.LOG2_CONTRAST * told[:, 9])
    expected = expected + flow_augmentation.BRIGHTNESS * told[:, 8]
    np.testing.assert_allclose(
        changed[:, 0, 0, 0], np.clip(expected, -1, 1), atol=1e-5
    )
