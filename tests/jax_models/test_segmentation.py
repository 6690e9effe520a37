"""What holds for both segmentation networks over every encoder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import golden_models
import golden_recipe as recipe
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_models
from core.errors import UserError
from jax_models import segmentation

pytestmark = pytest.mark.usefixtures("quick_compilation")

NETWORKS = jax_models.list_segmentation_models()
DEMOS = tuple(
    name for name in jax_models.list_models() if name.endswith("_demo")
)
CLASSES = recipe.PIXEL_CLASSES
# Narrow decoders.
OPTIONS = {
    "deeplabv3plus": {"channels": 16, "dropout": 0.0},
    "unet": {"channels": (24, 20, 16, 12, 8)},
}


def make(network, encoder="resnet_demo", **options):
    no_drop = {"encoder_options": golden_models.drops(encoder)}
    options = OPTIONS[network] | no_drop | options
    return jax_models.create_model(network, CLASSES, encoder=encoder, **options)


def filled(network, encoder="resnet_demo", **options):
    """With weights of which none is 0 or 1."""
    return golden_models.fill(
        lambda dtype: make(network, encoder, dtype=dtype, **options)
    )


def count(name, **options):
    model = nnx.eval_shape(
        lambda: jax_models.create_model(name, CLASSES, **options)
    )
    return sum(
        leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))
    )


@pytest.mark.parametrize(
    ("network", "encoder", "parameters"),
    [
        ("unet", "resnet18", 14_328_499),
        ("unet", "resnet34", 24_436_659),
        ("unet", "resnet50", 32_521_395),
        ("unet", "efficientnet_lite0", 5_198_451),
        ("deeplabv3plus", "resnet18", 12_329_811),
        ("deeplabv3plus", "resnet34", 22_437_971),
        ("deeplabv3plus", "resnet50", 26_678_099),
        ("deeplabv3plus", "efficientnet_lite0", 3_859_283),
    ],
)
def test_parameters_are_those_of_smp(network, encoder, parameters):
    options = {"wiring": "smp"} if network == "deeplabv3plus" else {}
    assert count(network, encoder=encoder, **options) == parameters


def test_parameters_of_other_forms():
    dense = dict(encoder="resnet50", separable=False)
    assert count("deeplabv3plus", wiring="smp", **dense) == 39_205_715
    # By the shapes in the paper.
    assert count("deeplabv3plus", **dense) == 40_347_555
    separable = count("deeplabv3plus", encoder="resnet50")
    norms = 2 * (3 * 2048 + 304 + 256)
    assert separable == 26_678_099 + norms


@pytest.mark.parametrize("encoder", DEMOS)
@pytest.mark.parametrize("network", NETWORKS)
def test_any_size_over_any_encoder(network, encoder):
    model = nnx.eval_shape(lambda: make(network, encoder))
    for height, width in ((75, 101), (1, 1), (3, 130)):
        images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
        logits, maps = nnx.eval_shape(
            lambda m, x: (m(x), m.feature_pyramid(x)), model, images
        )
        assert logits.shape == (2, height, width, CLASSES)
        assert logits.dtype == jnp.float32
        for one, stride in zip(maps, model.encoder.strides, strict=True):
            assert one.shape[1] >= height / stride
            assert one.shape[2] >= width / stride


@pytest.mark.parametrize(
    "encoder",
    [
        name
        if name == "resnet_demo"
        else pytest.param(name, marks=pytest.mark.slow)
        for name in DEMOS
    ],
)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_parameter_gets_a_gradient(network, encoder):
    """At a size that nothing divides."""
    model = filled(network, encoder)
    model.train()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    labels = recipe.pixel_labels(2, 50, 37)

    @jax.jit
    def grads_of(params, images):
        def loss(params):
            logits = nnx.merge(graphdef, params, rest, copy=True)(images)
            log_shares = jax.nn.log_softmax(logits)
            return (log_shares * jax.nn.one_hot(labels, CLASSES)).mean()

        return jax.grad(loss)(params)

    images = jnp.asarray(recipe.images(2, 50, 37, 3))
    silent = [
        path
        for path, grad in nnx.to_flat_state(grads_of(params, images))
        if not np.isfinite(grad[...]).all() or not np.any(grad[...])
    ]
    assert not silent


def apply(model, images):
    model.eval()
    graphdef, state = nnx.split(model)
    return jax.jit(lambda s, x: nnx.merge(graphdef, s)(x))(state, images)


@pytest.mark.parametrize("network", NETWORKS)
def test_bfloat16_is_close_to_float32(network):
    images = jnp.asarray(recipe.images(2, 64, 64, 3))
    exact_model = filled(network)
    rough_model = make(network, dtype=jnp.bfloat16)
    kinds = nnx.Any(nnx.Param, nnx.BatchStat)
    nnx.update(rough_model, nnx.state(exact_model, kinds))
    exact, rough = (apply(m, images) for m in (exact_model, rough_model))
    assert rough.dtype == jnp.float32
    assert np.any(exact != rough)  # It did compute in bfloat16.
    assert np.abs(exact - rough).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("network", NETWORKS)
def test_a_batch_of_one_pixel_trains(network):
    """Where pooled maps have one value, whose variance is 0."""
    model = filled(network)
    model.train()
    graphdef, state = nnx.split(model)

    @jax.jit
    def step(state, images):
        model = nnx.merge(graphdef, state, copy=True)
        return model(images), nnx.state(model, nnx.BatchStat)

    logits, statistics = step(state, jnp.ones((1, 1, 1, 3)))
    assert np.isfinite(logits).all()
    before = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    after = jax.tree.leaves(statistics)
    assert all(np.isfinite(leaf).all() for leaf in after)
    assert any(np.any(a != b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("network", NETWORKS)
def test_weights_go_to_pytorchs_names_and_back(network):
    model = golden_models.blank(lambda: make(network))
    exported = jax_models.export_torch(model)
    encoder = jax_models.export_torch(model.encoder)
    assert {f"encoder.{name}" for name in encoder} == {
        name for name in exported if name.startswith("encoder.")
    }
    assert "encoder.layer4.0.bn2.running_var" in exported
    weights = recipe.state_dict({k: v.shape for k, v in exported.items()})
    jax_models.import_torch(model, weights)
    for key, value in jax_models.export_torch(model).items():
        np.testing.assert_array_equal(value, weights[key])
    del weights["encoder.conv1.weight"]
    weights["decoder.extra"] = np.zeros(3)
    with pytest.raises(UserError) as raised:
        jax_models.import_torch(model, weights)
    assert "missing: encoder.conv1.weight" in str(raised.value)
    assert "unexpected: decoder.extra" in str(raised.value)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_head_without_bias(network):
    model = nnx.eval_shape(lambda: make(network, head_bias=None))
    assert model.head.fc.bias is None


@pytest.mark.parametrize("network", NETWORKS)
def test_another_number_of_classes_draws_a_new_head(network):
    model = make(network, head_bias=(0.0, 1.0, 2.0))
    weights = jax_models.export_torch(model)
    name = "segmentation_head.0"
    weights[f"{name}.weight"] = np.tile(
        weights[f"{name}.weight"][:1], (9, 1, 1, 1)
    )
    weights[f"{name}.bias"] = np.zeros(9, np.float32)
    model.head.fc.kernel[...] = 5.0
    with pytest.warns(UserWarning, match="the head was initialised anew"):
        jax_models.import_torch(model, weights)
    assert 0 < np.abs(model.head.fc.kernel[...]).max() < 5
    np.testing.assert_array_equal(model.head.fc.bias[...], (0, 1, 2))


def test_an_encoder_comes_from_a_classifier():
    """Dilated or not, whatever lies behind the classifier's pyramid."""
    for encoder in ("resnet_demo", "efficientnet_lite_demo"):
        classifier = golden_models.load(encoder)
        model = golden_models.blank(lambda e=encoder: make("deeplabv3plus", e))
        model.load_encoder(classifier)
        theirs = jax_models.export_torch(classifier)
        for key, value in jax_models.export_torch(model.encoder).items():
            np.testing.assert_array_equal(value, theirs[key])
    with pytest.raises(UserError, match="such as stages/0/0/bn1/bias"):
        golden_models.blank(lambda: make("unet")).load_encoder(classifier)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("output_stride", [16, 8])
def test_a_dilated_resnet_is_the_strided_one_at_more_places(
    block, output_stride
):
    """DeepLab's definition of atrous convolution, in torchvision's reading."""
    options = dict(block=block, depths=(1, 1, 2, 2), width=8)
    images = jnp.asarray(recipe.images(1, 64, 96, 3))
    last = {}
    for stride in (32, output_stride):
        model = golden_models.fill(
            lambda dtype, stride=stride: jax_models.create_model(
                "resnet18", 2, output_stride=stride, **options
            )
        )
        model.eval()
        graphdef, state = nnx.split(model)
        features = jax.jit(lambda s, x, g=graphdef: nnx.merge(g, s).features(x))
        last[stride] = features(state, images)
    step = 32 // output_stride
    dense = last[output_stride]
    assert dense.shape[1:3] == (64 // output_stride, 96 // output_stride)
    np.testing.assert_allclose(
        dense[:, ::step, ::step], last[32], rtol=0, atol=1e-5
    )


def test_the_small_stem_keeps_small_images():
    model = nnx.eval_shape(
        lambda: jax_models.create_model("resnet18", 10, stem="small")
    )
    assert model.strides == (1, 2, 4, 8)
    assert model.channels == (64, 128, 256, 512)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    last = nnx.eval_shape(lambda m, x: m.features(x), model, images)
    assert last.shape == (1, 4, 4, 512)


@pytest.mark.parametrize("length", range(1, 40))
def test_nearest_upsampling_is_pytorchs(length):
    """Which takes cell floor(i * inputs / outputs)."""
    inputs = -(-length // 2)
    x = jnp.arange(inputs, dtype=jnp.float32).reshape(1, inputs, 1, 1)
    found = segmentation.upsample_nearest(x, 2, (length, 1))
    right = np.arange(length) * inputs // length
    np.testing.assert_array_equal(found.ravel(), right)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2), (6, 7)])
def test_bilinear_upsampling(size, factor):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, *size, 3), np.float32))
    shape = (2, factor * size[0], factor * size[1], 3)
    found = segmentation.upsample_bilinear(x, factor)
    right = jax.image.resize(x, shape, "bilinear")
    np.testing.assert_allclose(found, right, atol=1e-6)
    cut = segmentation.upsample_bilinear(x, factor, (shape[1] - 1, shape[2]))
    np.testing.assert_array_equal(cut, found[:, :-1])
    # The centres of the corners stay.
    found = segmentation.upsample_bilinear(x, factor, align_corners=True)
    places = [np.linspace(0, n - 1, factor * n) for n in size]
    right = np.apply_along_axis(
        lambda row: np.interp(places[0], np.arange(size[0]), row), 1, x
    )
    right = np.apply_along_axis(
        lambda row: np.interp(places[1], np.arange(size[1]), row), 2, right
    )
    np.testing.assert_allclose(found, right, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (dict(encoder="resnet52"), "did you mean resnet5?0"),
        (dict(encoder="unet"), "no model named 'unet'"),
        (dict(encoder_options={"depht": 3}), "resnet50 has no option depht"),
        (dict(encoder="tinyvit_demo", output_stride=8), "map of stride 32"),
        (dict(output_stride=12), "output_stride=12"),
        (dict(wiring="mmseg"), "no DeepLabV3.* wiring='mmseg'"),
        (dict(encoder_options={"dilation": "x"}), "no encoder has dilation"),
        (dict(encoder_options={"stem": "x"}), "stems imagenet, small"),
        (dict(network="unet", channels=(8, 8)), "channels is .*give 5"),
        (dict(network="unet", channels=8), "channels=8; give several"),
        (dict(encoder_options="depths"), "give several values"),
        (dict(encoder_options=None), "give several values"),
        (dict(rates=(6, 12)), "give three numbers"),
        (dict(rates=(0, 1, 2)), "give three numbers"),
        (dict(head_bias=(0, 1)), "2 numbers for 3 outputs"),
    ],
)
def test_what_cannot_be_built_is_said_in_a_sentence(options, told):
    network = options.pop("network", "deeplabv3plus")
    with pytest.raises(UserError, match=told):
        nnx.eval_shape(lambda: jax_models.create_model(network, 3, **options))


IN_FOUR = """
import sys
sys.path[:0] = sys.argv[1:]
import jax, numpy as np
from jax.sharding import NamedSharding
from flax import nnx
import test_segmentation as test
from training.multihost import sharding
from jax_models import cpu_kernels
recipe = test.recipe
assert jax.device_count() == 4
images = recipe.images(8, 32, 48, 3)
for network in test.NETWORKS:
    model = test.filled(network)
    model.train()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    def step(params, images):
        def loss(params):
            model = nnx.merge(graphdef, params, rest, copy=True)
            logits = model(images)
            statistics = nnx.state(model, nnx.BatchStat)
            return (logits ** 2).mean(), (logits, statistics)
        return jax.value_and_grad(loss, has_aux=True)(params)
    results = []
    for devices in (1, 4):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        placed = sharding.put_batch({"image": images}, mesh)["image"]
        on_mesh = jax.jit(cpu_kernels.for_mesh(mesh)(step))
        found = on_mesh(params, placed)
        logits = found[0][1][0]
        if devices == 4:
            assert not logits.sharding.is_fully_replicated, network
        results.append(jax.tree.leaves(jax.device_get(found)))
    for one, other in zip(*results, strict=True):
        limit = 1e-3 * max(np.abs(one).max(), 1e-2)
        np.testing.assert_allclose(one, other, rtol=0, atol=limit)
print("equal")
"""


def test_a_batch_on_four_devices_gives_the_same():
    """Logits, gradients and statistics: those of the whole batch."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", IN_FOUR, str(root), str(Path(__file__).parent)],
        env=os.environ
        | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "equal", done.stderr[-2000:]
