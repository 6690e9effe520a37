"""The same weights and images give timm's and torchvision's numbers.

The goldens are what timm 1.0.31 and torchvision 0.29 on torch 2.13 gave
(tools/make_model_goldens.py): in float32 in evaluation mode, in float64 in
training mode. The demo models are built in timm from its own parts, and are
compared block by block and in training mode as well.
"""

from __future__ import annotations

from pathlib import Path

import golden_models
import golden_recipe as recipe
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_models.model import ImageModel

pytestmark = pytest.mark.usefixtures("quick_compilation")

GOLDENS = Path(__file__).parent / "goldens"
LOGITS_TOLERANCE = 1e-4

MAIN = (
    "miniconvnext",
    "tinyvit_11m",
    "efficientnetv2_m",
    "convnextv2_small",
    "convnextv2_base",
    "resnet34",
    "resnet50",
    "efficientnet_lite0",
    "efficientnet_b0",
    "mobilenetv2",
    "densenet121",
    "densenet_bc_100_12",
    "wide_resnet_40_4",
    "inception_v4",
)
DEMOS = tuple(name for name in recipe.MODELS if name.endswith("_demo"))
SIBLINGS = tuple(set(recipe.MODELS) - set(MAIN) - set(DEMOS))
# Where rounding carries a value across the kink of a rectifier, in a few
# places of these deep networks, its gradient jumps.
KINKED = (
    *("resnet50", "efficientnet_lite1", "efficientnet_lite2"),
    *("mobilenetv2", "densenet121", "densenet_bc_100_12", "inception_v4"),
)
# What compiles fast in float64 as well.
QUICK = (
    "convnextv2_demo",
    "efficientnetv2_demo",
    "resnet_demo",
    "efficientnet_lite_demo",
    "wide_resnet_demo",
    "densenet_demo",
)
STEPPED = {*recipe.MODELS} - {*recipe.LOGITS_ONLY}


# Whose blocks a demo has too.
SLOW = (
    *("efficientnetv2_m", "convnextv2_small", "convnextv2_base"),
    *("densenet121", "densenet_bc_100_12", "wide_resnet_40_4", "inception_v4"),
)


def later(names, slow):
    """`names` in test-full, and those of `slow` in test-slow."""
    return [
        pytest.param(
            name, marks=pytest.mark.slow if name in slow else pytest.mark.full
        )
        for name in sorted(names)
    ]


@pytest.fixture(scope="session")
def goldens():
    return lambda name: np.load(GOLDENS / f"{name}.npz")


def when(name, size):
    """Large networks take up to a quarter of a minute at each size."""
    if name in SIBLINGS:
        return [pytest.mark.full]
    # One is compared at the size of its paper, the others at odd ones.
    quick = size != (224, 224) or name == "tinyvit_11m"
    if name in MAIN[2:]:
        quick = size == (96, 160) and name not in SLOW
    return [] if quick else [pytest.mark.slow]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(
            name,
            size,
            id=f"{name}-{size[0]}x{size[1]}",
            marks=when(name, size),
        )
        for name in recipe.MODELS
        for size in recipe.sizes(name)
    ],
)
def test_logits(name, size, goldens, compiled_blocks):
    model = golden_models.load(name)
    model.eval()
    logits = model(jnp.asarray(recipe.images(1, *size, 3)))
    golden = goldens(name)["logits {}x{}".format(*size)]
    assert np.abs(golden).max() > 0.1  # Not by both being nothing.
    np.testing.assert_allclose(logits, golden, rtol=0, atol=LOGITS_TOLERANCE)


@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv2",
        *later({*recipe.SMALL_STEMS} - {"mobilenetv2"}, recipe.SMALL_STEMS),
    ],
)
def test_logits_with_the_small_stem(name, goldens, compiled_blocks):
    model = golden_models.load(name, stem="small")
    model.eval()
    assert model.stem_stride == 1
    logits = model(jnp.asarray(recipe.images(2, *recipe.SMALL_SIZES[0], 3)))
    golden = goldens("small_stems")[name]
    assert np.abs(golden).max() > 0.1
    np.testing.assert_allclose(logits, golden, rtol=0, atol=LOGITS_TOLERANCE)


@pytest.mark.parametrize(
    "name",
    [
        *DEMOS,
        "tinyvit_11m",
        *later(
            STEPPED - {*DEMOS, "tinyvit_11m"},
            slow=("miniconvnext", "efficientnetv2_m"),
        ),
    ],
)
def test_every_block(name, goldens, compiled_blocks, monkeypatch):
    seen = {}
    run_compiled = ImageModel.run_block

    def run_block(self, stage, block, x):
        x = run_compiled(self, stage, block, x)
        if type(block).__name__ not in ("Downsample", "PatchMerging"):
            index = sum(key.startswith(f"block {stage}.") for key in seen)
            seen[f"block {stage}.{index}"] = recipe.sample(x)
        return x

    monkeypatch.setattr(ImageModel, "run_block", run_block)
    model = golden_models.load(name)
    model.eval()
    model(jnp.asarray(recipe.images(*recipe.close_look(name))))
    golden = {
        key: value
        for key, value in goldens(name).items()
        if key.startswith("block")
    }
    assert set(seen) == set(golden)
    for key, value in golden.items():
        assert_close(seen[key], value, 1e-5, key)


@pytest.mark.parametrize(
    "name",
    [
        *QUICK,
        *later(
            STEPPED - {*QUICK},
            slow=(*DEMOS, "miniconvnext"),
        ),
    ],
)
def test_training_step(name, goldens):
    """Loss, gradients and BatchNorm's updates, all in training mode.

    In float64, so that what is left is a difference of the networks: in
    float32 the twelve cells of the last maps here, normalised in layer after
    layer, let rounding grow to nearly a thousandth in the deep networks.
    """
    with jax.enable_x64(True):
        found = golden_models.training_step(
            golden_models.load(name, jnp.float64), recipe.close_look(name)
        )
    compare(found, goldens(name), 1e-9)


@pytest.mark.parametrize(
    "name",
    [
        # Those that are not compared in float64 above, and one that is.
        *sorted({*DEMOS} - {*QUICK}),
        "convnextv2_demo",
        *later(
            STEPPED - {*DEMOS} | {*QUICK} - {"convnextv2_demo"},
            slow=(*DEMOS, "miniconvnext"),
        ),
    ],
)
def test_training_step_in_float32(name, goldens):
    """The same as it is trained: within what rounding leaves."""
    found = golden_models.training_step(
        golden_models.load(name), recipe.close_look(name)
    )
    tolerance = 1e-4 if name in DEMOS else 0.1 if name in KINKED else 5e-3
    compare(found, goldens(name), tolerance)


def compare(found, goldens, tolerance):
    """All that the goldens have of a step in training mode."""
    kinds = ("train ", "gradient ", "updated ")
    assert set(found) == {key for key in goldens if key.startswith(kinds)}
    for key, value in found.items():
        assert_close(value, goldens[key], tolerance, key)


def test_updates_are_not_those_of_the_biased_variance(goldens):
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
