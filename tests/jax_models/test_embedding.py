"""What an embedding over any encoder must hold to."""

from __future__ import annotations

import itertools
import math

import golden_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_models
from core.errors import UserError
from jax_models import embedding

pytestmark = pytest.mark.usefixtures("quick_compilation")

DEMOS = tuple(
    name for name in jax_models.list_models() if name.endswith("_demo")
)


def make(encoder="resnet_demo", num_classes=3, **options):
    own = {"encoder_options": golden_models.drops(encoder), "width": 8}
    options = own | options
    return jax_models.create_model(
        "embedding", num_classes, encoder=encoder, **options
    )


def filled(encoder="resnet_demo", num_classes=3, **options):
    """With weights of which none is 0 or 1."""
    return golden_models.fill(
        lambda dtype: make(encoder, num_classes, dtype=dtype, **options)
    )


def pictures(count=2, size=32, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(count, size, size, 3)), jnp.float32)


@pytest.fixture(scope="module")
def model():
    made = filled(forgery_head=True)
    made.eval()
    return made


@nnx.jit
def embed(model, images):
    return model.embed(images)


@pytest.mark.parametrize("encoder", DEMOS)
def test_every_encoder_can_be_embedded(encoder):
    def found(images):
        return make(encoder, forgery_head=True).embed(images)

    shapes = jax.eval_shape(found, pictures())
    assert shapes.embedding.shape == (2, 8)
    assert shapes.norm.shape == shapes.real_logit.shape == (2,)
    assert {leaf.dtype for leaf in shapes} == {jnp.dtype("float32")}


def test_pictures_are_told_apart(model):
    found = embed(model, pictures())
    lengths = np.linalg.norm(found.embedding, axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
    assert float(found.embedding[0] @ found.embedding[1]) < 0.9999
    assert found.real_logit[0] != found.real_logit[1]


def test_logits_are_cosines_to_the_classes(model):
    vectors = embed(model, pictures()).embedding
    cosines = np.asarray(nnx.jit(lambda m, x: m(x))(model, pictures()))
    kernel = np.asarray(model.head.kernel[...], np.float64)
    expected = np.asarray(vectors, np.float64) @ kernel
    expected /= np.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(cosines, expected, atol=1e-5)
    assert np.abs(cosines).max() <= 1 + 1e-6


def test_without_a_linear_layer_it_is_the_pooled_features():
    """As torchvision's ResNet-34 with its last layer taken off."""
    model = filled(width=0, num_classes=0)
    model.eval()
    last = nnx.jit(lambda m, x: m.encoder.features(x))(model, pictures())
    pooled = np.asarray(last, np.float64).mean((1, 2))
    found = embed(model, pictures())
    assert model.width == pooled.shape[1] == 128
    np.testing.assert_allclose(
        found.norm, np.linalg.norm(pooled, axis=1), rtol=1e-5
    )
    np.testing.assert_allclose(
        found.embedding * found.norm[:, None], pooled, rtol=1e-4, atol=1e-6
    )
    with pytest.raises(UserError, match="was made for 0 classes"):
        model(pictures())


def test_resnet34_has_the_parameters_of_torchvision_without_its_classifier():
    model = nnx.eval_shape(
        lambda: jax_models.create_model(
            "embedding", 0, encoder="resnet34", width=0
        )
    )
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == 21_797_672 - 513_000


@pytest.mark.parametrize(
    ("power", "expected"), [(1.0, 2.5), (3.0, 25 ** (1 / 3)), (60.0, 4.0)]
)
def test_gem_lies_between_mean_and_maximum(power, expected):
    pool = embedding.GeneralizedMean(power)
    x = jnp.asarray([[[[1.0], [2.0]], [[3.0], [4.0]]]])
    np.testing.assert_allclose(pool(x), [[[[expected]]]], rtol=0.03)


@pytest.mark.parametrize(("height", "width", "grid"), [(7, 5, 3), (2, 3, 4)])
def test_cells_are_those_of_adaptive_average_pooling(height, width, grid):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3))
    expected = np.zeros((2, grid, grid, 3))
    for i, j in itertools.product(range(grid), repeat=2):
        rows = slice(
            math.floor(i * height / grid), math.ceil((i + 1) * height / grid)
        )
        columns = slice(
            math.floor(j * width / grid), math.ceil((j + 1) * width / grid)
        )
        expected[:, i, j] = x[:, rows, columns].mean((1, 2))
    found = embedding.cell_means(jnp.asarray(x, jnp.float32), grid)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_cells_side_by_side_average_to_the_whole_map():
    images = pictures(size=64)
    whole, cells = (filled(grid=grid, width=0).embed(images) for grid in (1, 2))
    lengths = cells.norm[:, None]
    split = (cells.embedding * lengths).reshape(2, 4, -1)
    # The cells differ: what is where counts.
    assert np.abs(split - split[:, :1]).max() > 1e-3
    np.testing.assert_allclose(
        split.mean(1), whole.embedding * whole.norm[:, None], rtol=1e-4
    )


@pytest.mark.parametrize("pooling", ["avg", "gem"])
def test_a_grid_may_be_finer_than_the_map(pooling):
    found = make(pooling=pooling, grid=5, width=6).embed(pictures())
    assert found.embedding.shape == (2, 6)
    assert np.isfinite(found.embedding).all()


@pytest.mark.parametrize("power", [3, 7, 12])
def test_gem_has_finite_gradients_where_a_map_is_zero(power):
    def total(power, x):
        pool = embedding.GeneralizedMean(0)
        pool.power.set_value(power)
        return pool(x).sum()

    x = jnp.zeros((1, 2, 2, 1))
    grads = jax.grad(total, (0, 1))(jnp.float32(power), x)
    assert all(np.isfinite(grad).all() for grad in grads)


def test_a_vector_of_length_zero_stays_and_has_no_gradient():
    vectors = jnp.asarray([[0.0, 0.0], [3.0, 4.0]])
    found, norms = embedding.unit(vectors)
    np.testing.assert_allclose(found, [[0, 0], [0.6, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(norms, [0, 5], atol=1e-6)
    grads = jax.grad(lambda v: embedding.unit(v)[0].sum())(vectors)
    # (1 - u u^T) 1 / 5 for the second.
    np.testing.assert_allclose(grads, [[0, 0], [0.032, -0.024]], atol=1e-6)


def test_the_class_head_and_its_memory_are_all_under_head():
    model = nnx.eval_shape(
        lambda: make(forgery_head=True, pooling="gem", memory=6)
    )
    paths = nnx.to_flat_state(nnx.state(model)).paths
    assert {path[0] for path in paths} == {
        "encoder",
        "pool",
        "neck",
        "forgery",
        "head",
    }
    assert model.head.memory.embeddings.shape == (6, 8)


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "max"},
        {"width": -1},
        {"memory": -1},
        {"forgery_width": 0},
        {"grid": 0},
    ],
)
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(UserError, match="no embedding has"):
        make(**options)


def test_efficientnets_pool_what_lies_behind_their_pyramid():
    model = nnx.eval_shape(lambda: make("efficientnet_lite_demo", width=0))
    assert model.width > model.encoder.channels[-1]
