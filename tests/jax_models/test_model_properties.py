"""What holds for every model."""

from __future__ import annotations

import math

import golden_models
import golden_recipe as recipe
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_models
from core.errors import UserError
from jax_models.model import HEAD

pytestmark = pytest.mark.usefixtures("quick_compilation")

NAMES = tuple(jax_models.list_models())
DEMOS = tuple(name for name in NAMES if name.endswith("_demo"))


def all_models(quick, slow=()):
    """All names, those outside of `quick` in test-slow or test-full."""

    def mark(name):
        return pytest.mark.slow if name in slow else pytest.mark.full

    return [
        name if name in quick else pytest.param(name, marks=mark(name))
        for name in NAMES
    ]


COMPUTED = all_models(quick=DEMOS, slow=("miniconvnext", "convnextv2_atto"))
# Where only shapes are traced.
TRACED = all_models(
    quick=(*DEMOS, "tinyvit_11m", "miniconvnext"),
    slow=("efficientnetv2_m", "convnextv2_base"),
)


def abstract(name, **overrides):
    return nnx.eval_shape(
        lambda: jax_models.create_model(name, recipe.CLASSES, **overrides)
    )


def cells(pixels, stride, name):
    """Convolutions without padding round down, padded ones up; DenseNet's
    stem rounds up, and what lies between its blocks down."""
    if name.startswith("densenet"):
        up = min(stride, 1 if recipe.is_small(name) else 4)
        return math.ceil(pixels / up) // (stride // up)
    round_ = math.floor if "convnext" in name else math.ceil
    return round_(pixels / stride)


def some_size(model, *sizes):
    """The first size that the model takes, or the one it is made for."""
    if model.image_size:
        return model.image_size
    fitting = [size for size in sizes if min(size) >= model.minimum_size]
    return (*fitting, (model.minimum_size, model.minimum_size))[0]


@pytest.mark.parametrize("name", TRACED)
def test_shapes(name):
    model = abstract(name)
    for batch, *size in ((1, 32, 32), (2, 33, 75)):
        height, width = some_size(model, size)
        images = jax.ShapeDtypeStruct((batch, height, width, 3), jnp.float32)
        logits, maps, stem = nnx.eval_shape(
            lambda m, x: (m(x), m.feature_pyramid(x), m.embed(x)),
            model,
            images,
        )
        assert logits.shape == (batch, recipe.CLASSES)
        assert logits.dtype == jnp.float32
        widths = [one.shape[-1] for one in (*maps, stem)]
        assert widths == [*model.channels, model.stem_channels]
        if not model.ALIGNED:
            continue
        assert [tuple(one.shape) for one in maps] == [
            (batch, cells(height, s, name), cells(width, s, name), channels)
            for s, channels in zip(model.strides, model.channels, strict=True)
        ]
        assert stem.shape == (
            batch,
            cells(height, model.stem_stride, name),
            cells(width, model.stem_stride, name),
            model.stem_channels,
        )


@pytest.mark.parametrize("name", TRACED)
def test_state_is_parameters_statistics_and_streams(name):
    """Training splits a model into these three and no more."""
    model = abstract(name, **golden_models.drops(name, 0.1))
    _, params, statistics, streams = nnx.split(
        model, nnx.Param, nnx.BatchStat, nnx.RngState
    )
    for leaf in jax.tree.leaves((params, statistics)):
        assert leaf.dtype == jnp.float32
    assert bool(jax.tree.leaves(statistics)) == ("convnext" not in name)
    assert jax.tree.leaves(streams)


@pytest.mark.parametrize("name", TRACED)
def test_the_classifier_is_what_lies_under_head(name):
    """`features` reads every parameter but the classifier's, in all models."""
    model = abstract(name)
    model.eval()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def features(params, rest, images):
        return nnx.merge(graphdef, params, rest).features(images)

    shape = (1, *some_size(model, (64, 64)), 3)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    program = jax.make_jaxpr(features)(params, rest, images).jaxpr
    read = {id(value) for step in program.eqns for value in step.invars}
    paths = [path for path, _ in nnx.to_flat_state(params)]
    unread = [
        path
        for path, value in zip(paths, program.invars, strict=False)
        if id(value) not in read
    ]
    assert unread == [path for path in paths if path[0] == HEAD]
    assert ("head", "fc", "kernel") in unread


@pytest.mark.parametrize("name", COMPUTED)
def test_every_parameter_gets_a_gradient(name):
    """With a batch of one; weights from the recipe, so none starts at 0."""
    model = golden_models.load(name)
    model.train()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def grads_of(params, images):
        def loss(params):
            logits = nnx.merge(graphdef, params, rest, copy=True)(images)
            return jax.nn.log_softmax(logits)[0, 3]

        return jax.grad(loss)(params)

    size = some_size(model, (48, 80))
    images = jnp.asarray(recipe.images(1, *size, 3))
    found = nnx.to_flat_state(grads_of(params, images))
    silent = [
        path
        for path, slope in found
        if not np.isfinite(slope[...]).all() or not np.any(slope[...])
    ]
    assert not silent


@pytest.mark.parametrize("name", COMPUTED)
def test_bfloat16_is_close_to_float32(name):
    loaded = golden_models.load(name)
    size = some_size(loaded, (64, 64))
    images = jnp.asarray(recipe.images(2, *size, 3))
    state = nnx.state(loaded)
    logits = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        model = abstract(name, dtype=dtype, **golden_models.drops(name))
        model.eval()
        graphdef = nnx.graphdef(model)
        apply = jax.jit(lambda state, x, g=graphdef: nnx.merge(g, state)(x))
        logits[dtype] = np.asarray(apply(state, images))
        assert logits[dtype].dtype == np.float32
    exact, rough = logits.values()
    assert np.any(exact != rough)  # It did compute in bfloat16.
    assert np.abs(exact - rough).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize(
    "name",
    [
        # Drop path with and without statistics beside it, and dropout.
        name
        if name in ("tinyvit_demo", "convnextv2_demo", "densenet_demo")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in DEMOS
    ],
)
def test_training_is_random_and_evaluation_is_not(name):
    state = nnx.state(golden_models.load(name), nnx.Param, nnx.BatchStat)
    model = jax_models.create_model(
        name, recipe.CLASSES, **golden_models.drops(name, 0.3)
    )
    nnx.update(model, *state)
    images = jnp.asarray(recipe.images(8, 32, 32, 3))
    runs = {}
    for mode in (model.train, model.eval):
        mode()
        graphdef, state = nnx.split(model)

        @jax.jit
        def apply(state, graphdef=graphdef):
            model = nnx.merge(graphdef, state, copy=True)
            return model(images), nnx.state(model)

        first, after = apply(state)
        second, _ = apply(after)
        runs[mode.__name__] = first, second, after
    first, second, _ = runs["train"]
    third, fourth, after = runs["eval"]
    assert not np.allclose(first, second)
    assert not np.allclose(first, third)
    np.testing.assert_array_equal(third, fourth)
    # Evaluation leaves statistics and streams as they were.
    for before, now in zip(
        jax.tree.leaves(state), jax.tree.leaves(after), strict=True
    ):
        if jnp.issubdtype(before.dtype, jax.dtypes.prng_key):
            before, now = jax.random.key_data(before), jax.random.key_data(now)
        np.testing.assert_array_equal(before, now)


@pytest.mark.parametrize("name", COMPUTED)
def test_no_float64_even_where_it_is_allowed(name):
    """With 64-bit types on, a stray one would show in the program."""
    with jax.enable_x64(True):
        graphdef, params, rest = nnx.split(abstract(name), nnx.Param, ...)

        def loss(params, rest, images):
            model = nnx.merge(graphdef, params, rest, copy=True)
            return model(images).sum(), nnx.state(model, nnx.BatchStat)

        shape = (2, *some_size(abstract(name), (64, 48)), 3)
        images = jax.ShapeDtypeStruct(shape, jnp.float32)
        grads_of = jax.grad(loss, has_aux=True)
        step = jax.make_jaxpr(grads_of)(params, rest, images)
        assert "f64[" not in str(step)
        init = jax.make_jaxpr(
            lambda: nnx.state(jax_models.create_model(name, 4))
        )()
        assert "f64[" not in str(init)


@pytest.mark.parametrize(
    ("name", "remat"),
    [
        ("convnextv2_demo", True),
        ("convnextv2_demo", (1,)),
        ("efficientnetv2_demo", True),
        pytest.param("tinyvit_demo", True, marks=pytest.mark.slow),
    ],
)
def test_remat_changes_no_number(name, remat):
    """The same loss, gradients, statistics and next random masks."""
    values = nnx.state(golden_models.load(name), nnx.Param, nnx.BatchStat)
    images = jnp.asarray(recipe.images(2, 32, 32, 3))
    results = []
    for option in (False, remat):
        model = jax_models.create_model(
            name, recipe.CLASSES, drop_path_rate=0.3, remat=option
        )
        nnx.update(model, *values)
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)

        def step(params, rest, graphdef=graphdef):
            def loss(params):
                model = nnx.merge(graphdef, params, rest, copy=True)
                value = jnp.square(model(images)).mean()
                rest_after = nnx.state(model, nnx.BatchStat, nnx.RngCount)
                return value, rest_after

            return jax.value_and_grad(loss, has_aux=True)(params)

        program = str(jax.make_jaxpr(step)(params, rest))
        assert ("checkpoint" in program or "remat" in program) == bool(option)
        results.append(jax.jit(step)(params, rest))

    def close(a, b):
        # The compiler fuses the two programs differently, so the last bits
        # of the sums may differ. A bias that the next BatchNorm takes away
        # has no gradient but such last bits.
        limit = 1e-4 * max(float(jnp.abs(a).max()), 1e-2)
        np.testing.assert_allclose(a, b, rtol=0, atol=limit)

    jax.tree.map(close, *results)


@pytest.mark.parametrize("name", TRACED)
def test_impossible_images_are_refused_in_a_sentence(name):
    model = abstract(name)
    for shape in ((32, 32, 3), (1, 3, 32, 32), (1, 32, 32, 1)):
        with pytest.raises(UserError, match="put the channels last"):
            model.check(jnp.zeros(shape))
    too_small = model.minimum_size - 1
    with pytest.raises(UserError, match="make the images larger"):
        model(jnp.zeros((1, 300, too_small, 3)))


@pytest.mark.parametrize("name", DEMOS)
def test_head_bias(name):
    prior = tuple(np.log([0.7, 0.2, 0.1]).tolist())
    model = jax_models.create_model(name, 3, head_bias=prior)
    np.testing.assert_allclose(model.head.fc.bias[...], prior, rtol=1e-6)
    assert abstract(name, head_bias=None).head.fc.bias is None


@pytest.mark.parametrize("value", [-4.0, [-4.0] * 10, np.full(10, -4.0)])
def test_what_a_head_bias_may_be(value):
    model = jax_models.create_model("resnet_demo", 10, head_bias=value)
    np.testing.assert_array_equal(model.head.fc.bias[...], -4)


def count(name, **overrides):
    leaves = jax.tree.leaves(nnx.state(abstract(name, **overrides), nnx.Param))
    return sum(leaf.size for leaf in leaves)


def test_variants_of_the_first_place_solution():
    """Its own forms of the networks, by its own parameter counts."""
    swin = dict(swin_bias=True, mlp_norm=False)
    assert count("tinyvit_11m", **swin) == 10_579_684
    short = dict(last_stage=False, se_from_expanded=True)
    assert count("efficientnetv2_m", **short) == 66_340_624
    # Layer scale costs one parameter per channel and block; GRN eight.
    published = count("convnextv2_small")
    scaled = count("convnextv2_small", grn=False, layer_scale=0.0)
    channels = 3 * 96 + 3 * 192 + 27 * 384 + 3 * 768
    assert published - scaled == (8 - 1) * channels == 94_752


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tinyvit_demo", dict(swin_bias=True, mlp_norm=False)),
        ("efficientnetv2_demo", dict(last_stage=False, se_from_expanded=True)),
        ("convnextv2_demo", dict(grn=False, layer_scale=0.0)),
    ],
)
def test_variants_run(name, options):
    graphdef, state = nnx.split(jax_models.create_model(name, 4, **options))
    apply = jax.jit(lambda state, x: nnx.merge(graphdef, state, copy=True)(x))
    images = recipe.images(2, 64, 96, 3)
    assert np.isfinite(apply(state, images)).all()
