"""What is done to training images is not seen in sampled ones."""

import numpy as np
from tiny_generator import tiny, trained

from configs import generation
from training.multihost import sharding
from training.tasks import generate
from training.tasks.flow_augmentation import augment

SIDE, COUNT = 16, 64


def sampled():
    """Images of a generator that knows one picture, dark on its left.

    Half of what it trained on was mirrored, and each of the other changes was
    made to three in ten.
    """
    config = tiny(
        augment=0.3,
        flip=0.5,
        steps=10,
        sampler="euler",
        chunk=COUNT,
        time_shift=2.0,
    )
    config.image_size = SIDE
    config.model_options.update(width=64, depth=2, patch=SIDE)
    config.stages = (generation.stage(1e-2, batch_size=COUNT, ema_decay=0.95),)
    picture = np.where(np.arange(SIDE) < SIDE // 2, 60, 190)[None, :, None]
    noise = np.random.default_rng(0).integers(-10, 11, (COUNT, SIDE, SIDE, 3))
    labels = np.zeros(COUNT, np.int32)
    images = (picture + noise).astype(np.uint8)
    task, now, _ = trained(config, images, labels, 300)
    sample = task.sampler_on(sharding.make_mesh())
    made = sample(*now.weights, labels, np.arange(COUNT))
    return np.stack(list(made)).astype(np.float32)


def right_minus_left(images):
    halves = images.reshape(COUNT, SIDE, 2, SIDE // 2, 3).mean((1, 3, 4))
    return halves[:, 1] - halves[:, 0]


def test_samples_are_of_images_to_which_nothing_was_done():
    images = sampled()
    # The picture has 130.
    assert right_minus_left(images).min() > 90
    means = images.mean((1, 2, 3))
    assert abs(means.mean() - 125) < 15 and means.std() < 8


def test_without_the_condition_the_changes_are_seen(monkeypatch):
    """Or the test above could not fail."""

    def untold(images, key, **options):
        changed, parameters = augment(images, key, **options)
        return changed, 0 * parameters

    monkeypatch.setattr(generate, "augment", untold)
    images = sampled()
    mirrored = (right_minus_left(images) < 0).mean()
    assert 0.25 < mirrored < 0.75
    assert images.mean((1, 2, 3)).std() > 12
