"""Every row is predicted once, in order; unread rows say little."""

import jax.numpy as jnp
import numpy as np
import pytest

from training.loop import predict
from training.multihost import sharding


def batches(rows, size, bad=()):
    """Evaluation batches of 1x1 images whose value is their row."""
    for start in range(0, len(rows), size):
        part = list(rows[start : start + size])
        part += [-1] * (size - len(part))
        image = np.array(part).reshape(size, 1, 1, 1, 1)
        yield {
            "image": np.repeat(image, 2, axis=1).astype(np.int32),
            "row": np.array(part, np.int32),
            "bad": np.array([row in bad for row in part]),
        }


def step(params, batch_stats, images):
    """Logits [row, -row] in the first view, one more in the second."""
    value = images[:, :, 0, 0, 0].astype(jnp.float32)
    value = value + jnp.arange(2.0)
    return jnp.stack([value, -value], axis=-1)


def run(order, rows, **options):
    mesh = sharding.make_mesh()
    return predict.predict(
        step, {}, {}, batches(order, 4, **options), np.array(rows), mesh
    )


def test_rows_come_back_in_order_and_filling_is_dropped():
    rows = [7, 2, 9, 4, 11, 3]
    found = run(rows, rows)
    np.testing.assert_array_equal(found.logits[:, 0, 0], rows)
    np.testing.assert_array_equal(found.logits[:, 1, 0], np.add(rows, 1))
    prior = np.array([0.5, 0.5])
    np.testing.assert_allclose(found.mean(prior)[:, 0], np.add(rows, 0.5))
    np.testing.assert_allclose(found.mean(prior, 1)[:, 0], rows)


@pytest.mark.parametrize(
    "order",
    [
        [1, 2, 3],
        [1, 2, 3, 4, 4],
        [1, 2, 2, 4],
        [2, 1, 3, 4],
        [1, 2, 3, 4, 5, 7, 6],
    ],
)
def test_a_row_lost_or_repeated_or_out_of_order_is_an_error(order):
    rows = sorted(set(order) | {1, 2, 3, 4})
    with pytest.raises(RuntimeError, match="were to be"):
        run(order, rows)


def test_an_unreadable_image_gets_the_class_prior():
    found = run([5, 6, 7], [5, 6, 7], bad=(6,))
    prior = np.array([0.8, 0.2])
    np.testing.assert_array_equal(found.bad, [False, True, False])
    np.testing.assert_allclose(found.mean(prior)[1], np.log(prior), rtol=1e-6)
    assert found.mean(prior)[0, 0] == 5.5
