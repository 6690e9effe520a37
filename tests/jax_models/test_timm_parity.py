"""The same weights and images give timm's numbers.

The goldens are what timm 1.0.31 on torch 2.13 gave, in float32
(tools/make_model_goldens.py). The demo models are built in timm from its own
parts, and are compared block by block and in training mode as well.
"""

from __future__ import annotations

from pathlib import Path

import golden_recipe as recipe
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_models
from jax_models.model import ImageModel

GOLDENS = Path(__file__).parent / "goldens"
LOGITS_TOLERANCE = 1e-4

MAIN = (
    "miniconvnext",
    "tinyvit_11m",
    "efficientnetv2_m",
    "convnextv2_small",
    "convnextv2_base",
)
DEMOS = tuple(name for name in recipe.MODELS if name.endswith("_demo"))
SIBLINGS = tuple(set(recipe.MODELS) - set(MAIN) - set(DEMOS))


def slow(names):
    return [
        pytest.param(name, marks=pytest.mark.slow) for name in sorted(names)
    ]


@pytest.fixture(scope="session")
def goldens():
    return lambda name: np.load(GOLDENS / f"{name}.npz")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(
            name,
            size,
            id=f"{name}-{size[0]}x{size[1]}",
            # The large ones at 224 px take a quarter of a minute each.
            marks=[pytest.mark.slow]
            if name in SIBLINGS or (name in MAIN[2:] and size[0] == 224)
            else [],
        )
        for name in recipe.MODELS
        for size in recipe.SIZES
    ],
)
def test_logits(name, size, golden_model, goldens, compiled_blocks):
    model = golden_model(name)
    model.eval()
    logits = model(jnp.asarray(recipe.images(1, *size, 3)))
    golden = goldens(name)["logits {}x{}".format(*size)]
    assert np.abs(golden).max() > 0.1  # Not by both being nothing.
    np.testing.assert_allclose(logits, golden, rtol=0, atol=LOGITS_TOLERANCE)


@pytest.mark.parametrize(
    "name", [*DEMOS, "tinyvit_11m", *slow({*MAIN, *SIBLINGS} - {"tinyvit_11m"})]
)
def test_every_block(name, golden_model, goldens, compiled_blocks, monkeypatch):
    seen = {}
    run_compiled = ImageModel.run_block

    def run_block(self, stage, block, x):
        x = run_compiled(self, stage, block, x)
        if type(block).__name__ not in ("Downsample", "PatchMerging"):
            index = sum(key.startswith(f"block {stage}.") for key in seen)
            seen[f"block {stage}.{index}"] = recipe.sample(x)
        return x

    monkeypatch.setattr(ImageModel, "run_block", run_block)
    model = golden_model(name)
    model.eval()
    model(jnp.asarray(recipe.images(*recipe.CLOSE_LOOK)))
    golden = {
        key: value
        for key, value in goldens(name).items()
        if key.startswith("block")
    }
    assert set(seen) == set(golden)
    for key, value in golden.items():
        assert_close(seen[key], value, 1e-5, key)


@pytest.mark.parametrize("name", [*DEMOS, *slow({*MAIN, "tinyvit_5m"})])
def test_training_step(name, golden_model, goldens, quick_compilation):
    """Loss, gradients and BatchNorm's updates, all in training mode."""
    model = golden_model(name)
    model.train()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    labels = recipe.labels(recipe.CLOSE_LOOK[0])

    @jax.jit
    def step(params, rest, images):
        def loss(params, images):
            model = nnx.merge(graphdef, params, rest, copy=True)
            logits = model(images)
            chosen = jax.nn.log_softmax(logits)[np.arange(len(labels)), labels]
            return -chosen.mean(), (logits, nnx.state(model, nnx.BatchStat))

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, images)

    images = jnp.asarray(recipe.images(*recipe.CLOSE_LOOK))
    (loss, (logits, statistics)), slopes = step(params, rest, images)
    golden = dict(goldens(name))
    # Looser than in evaluation: over the twelve cells that the last maps have
    # here, BatchNorm after BatchNorm amplifies what rounding leaves. The
    # demo models, with few of them, are a thousand times closer.
    tolerance = 1e-5 if name in DEMOS else 1e-3
    assert_close(loss, golden["train loss"], tolerance, "loss")
    assert_close(logits, golden["train logits"], tolerance, "logits")

    to_params, to_images = slopes
    sampled = recipe.sample(to_images, 512)
    assert_close(sampled, golden.pop("gradient images"), 1e-3, "images")
    # The exporter turns gradients as it turns weights.
    found = jax_models.export_torch(nnx.merge(graphdef, to_params, statistics))
    for key, value in golden.items():
        kind, _, name = key.partition(" ")
        if kind == "gradient":
            assert_close(recipe.sample(found[name]), value, 1e-3, key)
        elif kind == "updated":
            assert_close(recipe.sample(found[name], 8), value, 1e-5, key)


def test_updates_are_not_those_of_the_biased_variance(golden_model, goldens):
    """The last map has few cells, so the two differ clearly there."""
    golden = goldens("tinyvit_demo")
    key = "stages.3.blocks.0.local_conv.bn.running_var"
    before = recipe.sample(recipe.weight(key, (96,)), 8)
    cells = 2 * 2 * 3
    step = golden[f"updated {key}"] - 0.9 * before
    assert np.all(step > 0)
    assert cells / (cells - 1) > 1.05  # The tolerance above is 1e-5.


def assert_close(found, golden, tolerance, what):
    """Within `tolerance` of the largest value there."""
    limit = tolerance * max(np.abs(golden).max(), 1e-6)
    worst = np.abs(np.asarray(found) - golden).max()
    assert worst <= limit, f"{what}: {worst:.2e} apart, {limit:.2e} allowed"
