"""The shared layers, against what JAX or arithmetic says they are."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import expit
from scipy.stats import norm

import jax_models
from jax_models import functional, layers, tinyvit


@pytest.mark.parametrize(
    ("height", "size", "strides", "padding", "groups", "dilation"),
    [
        (20, 7, 1, 3, 6, 1),
        (1, 7, 1, 3, 6, 1),
        (17, 3, 2, 1, 6, 1),
        (15, 3, 2, "SAME", 6, 1),
        (9, 5, 1, "VALID", 6, 1),
        (9, 3, 1, "SAME", 6, 2),
        (15, 3, 2, "SAME", 1, 1),
        (9, 3, 1, "SAME", 1, 3),
        (9, 3, 1, "SAME", 3, 1),
        (11, 4, 4, "VALID", 1, 1),  # matrices over patches, two rows left over
        (8, 4, 4, "SAME", 1, 1),
        (9, 1, 1, "SAME", 1, 1),
        (9, 1, 2, 0, 1, 1),
        (8, 1, 2, "SAME", 3, 1),
        (3, 3, 1, "SAME", 1, 2),  # Fewer places than the kernel has.
        (1, 3, 1, 4, 1, 4),
    ],
    ids=str,
)
def test_conv_is_that_of_nnx(height, size, strides, padding, groups, dilation):
    """Depthwise, dense, dilated and grouped, with its gradients."""
    options = dict(
        padding=padding,
        feature_group_count=groups,
        kernel_dilation=dilation,
        rngs=nnx.Rngs(0),
    )
    ours = layers.Conv(6, 6, size, strides, dtype=jnp.float32, **options)
    theirs = nnx.Conv(6, 6, (size, size), strides, **options)
    rng = np.random.default_rng(0)
    assert ours.kernel.shape == theirs.kernel.shape
    kernel = rng.standard_normal(ours.kernel.shape, np.float32)
    bias = rng.standard_normal(6, np.float32)
    images = rng.standard_normal((6, height, height + 1, 6), np.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_grads(graphdef, *arrays):
        def convolve(images, kernel, bias):
            conv = nnx.merge(
                graphdef, nnx.State(dict(kernel=kernel, bias=bias))
            )
            return conv(images)

        output, vjp = jax.vjp(convolve, *arrays)
        return output, *vjp(jnp.cos(output))

    found, expected = (
        value_and_grads(nnx.graphdef(conv), images, kernel, bias)
        for conv in (ours, theirs)
    )
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())


@pytest.mark.parametrize("batch", [1, 7, 11, 16])
def test_depthwise_conv_takes_any_batch(batch):
    conv = layers.Conv(
        3, 3, 3, feature_group_count=3, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    conv.kernel[...] = jnp.ones((3, 3, 1, 3))
    images = (
        jnp.ones((batch, 20, 20, 3))
        * jnp.arange(1.0, batch + 1)[:, None, None, None]
    )
    found = conv(images)
    np.testing.assert_allclose(found[:, 5, 5, 0], 9 * np.arange(1, batch + 1))


@pytest.mark.parametrize("swin_bias", [False, True])
@pytest.mark.parametrize("size", [(5, 9), (3, 10), (2, 3)])
def test_window_attention_is_that_of_a_padded_map(size, swin_bias):
    """Against the plain way, cell by cell: pad with zeros, cut, attend."""
    window, heads, depth = 4, 2, 5
    channels = heads * depth
    attention = tinyvit.WindowAttention(
        channels,
        heads,
        window,
        swin_bias,
        dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )
    rng, arrays = np.random.default_rng(0), {}
    for path, value in nnx.to_flat_state(nnx.state(attention, nnx.Param)):
        array = 0.5 * rng.standard_normal(value.shape)
        arrays["/".join(path)] = array
        value.set_value(jnp.asarray(array, jnp.float32))
    x = rng.standard_normal((2, *size, channels))
    table = arrays["attention_biases"]

    def attend(cells):
        """`[window, window, C]` to the same."""
        flat = cells.reshape(-1, channels)
        flat = flat - flat.mean(-1, keepdims=True)
        flat = flat / np.sqrt(flat.var(-1, keepdims=True) + 1e-5)
        flat = flat * arrays["norm/scale"] + arrays["norm/bias"]
        qkv = flat @ arrays["qkv/kernel"] + arrays["qkv/bias"]
        qkv = qkv.reshape(-1, heads, 3, depth)
        mixed = np.zeros((len(flat), heads, depth))
        places = list(np.ndindex(window, window))
        for head in range(heads):
            query, key, value = np.moveaxis(qkv[:, head], 1, 0)
            scores = query @ key.T / np.sqrt(depth)
            for i, (row, column) in enumerate(places):
                for j, (other_row, other_column) in enumerate(places):
                    down, right = row - other_row, column - other_column
                    if swin_bias:
                        side = 2 * window - 1
                        down, right = down + window - 1, right + window - 1
                    else:
                        side, down, right = window, abs(down), abs(right)
                    scores[i, j] += table[head, down * side + right]
            weights = np.exp(scores)
            weights /= weights.sum(-1, keepdims=True)
            mixed[:, head] = weights @ value
        out = mixed.reshape(-1, channels) @ arrays["proj/kernel"]
        return (out + arrays["proj/bias"]).reshape(cells.shape)

    padding = [(0, 0), *((0, -length % window) for length in size), (0, 0)]
    expected = np.pad(x, padding)
    for image in expected:
        for top in range(0, image.shape[0], window):
            for left in range(0, image.shape[1], window):
                cut = np.s_[top : top + window, left : left + window]
                image[cut] = attend(image[cut])
    expected = expected[:, : size[0], : size[1]]
    found = jax.jit(attention)(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_layer_scale_of_zero_starts_blocks_as_identities():
    scaled = jax_models.create_model(
        "convnextv2_demo",
        4,
        depths=(1,),
        dims=(8,),
        grn=False,
        layer_scale=0.0,
    )
    block = scaled.stages[0].blocks[0]
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    np.testing.assert_array_equal(block(x), x)
    block.gamma[...] = jnp.ones(8)
    assert not np.allclose(block(x), x)


@pytest.mark.parametrize("name", ["gelu", "silu", "relu", "relu6"])
def test_activations_and_their_gradients_are_exact(name):
    exact, derivative = {
        "gelu": (
            lambda x: x * norm.cdf(x),
            lambda x: norm.cdf(x) + x * norm.pdf(x),
        ),
        "silu": (
            lambda x: x * expit(x),
            lambda x: expit(x) * (1 + x * (1 - expit(x))),
        ),
        "relu": (lambda x: np.maximum(x, 0), lambda x: x > 0),
        "relu6": (lambda x: np.clip(x, 0, 6), lambda x: (x > 0) & (x < 6)),
    }[name]
    function = getattr(functional, name)
    # A length that no vector divides; far ends, where exp would overflow.
    x = np.concatenate([np.linspace(-6, 6, 999), [-1e4, -100, 0, 100, 1e4]])
    x = x.reshape(4, 251).astype(np.float32)
    wide = x.astype(np.float64)
    y, back = jax.vjp(function, jnp.asarray(x))
    scale = np.maximum(1, np.abs(x))
    np.testing.assert_array_less(np.abs(y - exact(wide)), 3e-7 * scale)
    given = np.linspace(0.5, 2, x.size, dtype=np.float32).reshape(x.shape)
    expected = given * derivative(wide)
    np.testing.assert_allclose(back(jnp.asarray(given))[0], expected, atol=2e-6)
    x = np.linspace(-6, 6, 50)
    narrow, back = jax.vjp(function, jnp.asarray(x, jnp.bfloat16))
    grad = back(jnp.ones_like(narrow))[0]
    assert narrow.dtype == grad.dtype == jnp.bfloat16
    x = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)
    np.testing.assert_allclose(narrow, exact(x), rtol=0.01, atol=0.01)
    np.testing.assert_allclose(grad, derivative(x), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (1, 1), (2, 9)], ids=str)
def test_max_pooling_and_its_gradient(size):
    """JAX's, which no two cells of a window equal."""

    def expected(x):
        window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
        pads = ((0, 0), (1, 1), (1, 1), (0, 0))
        return jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, window, strides, pads
        )

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_grad(pool, x, grad):
        y, back = jax.vjp(pool, x)
        return y, back(grad.astype(y.dtype))[0]

    x = jax.random.normal(jax.random.key(0), (2, *size, 5))
    shape = jax.eval_shape(expected, x).shape
    assert shape[1:3] == tuple(-(-length // 2) for length in size)
    grad = jax.random.normal(jax.random.key(1), shape)
    found = value_and_grad(functional.max_pool, x, grad)
    for one, right in zip(
        found, value_and_grad(expected, x, grad), strict=True
    ):
        np.testing.assert_allclose(one, right, rtol=0, atol=1e-6)
    # Of equal cells one gets it all.
    _, to_equal = value_and_grad(functional.max_pool, jnp.zeros_like(x), grad)
    np.testing.assert_allclose(to_equal.sum(), grad.sum(), rtol=1e-4)
    for one in value_and_grad(
        functional.max_pool, x.astype(jnp.bfloat16), grad
    ):
        assert one.dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", ["layer", "batch"])
def test_norms_and_their_gradients(kind):
    rng = np.random.default_rng(0)
    # A mean far from zero, which a one-pass variance would not survive.
    x = jnp.asarray(rng.standard_normal((4, 3, 2, 8)) * 0.1 + 100)
    scale = rng.uniform(0.5, 2, 8).astype(np.float32)
    bias = rng.standard_normal(8).astype(np.float32)
    axes = -1 if kind == "layer" else (0, 1, 2)

    def plain(x, scale, bias):
        mean = x.mean(axes, keepdims=True)
        variance = ((x - mean) ** 2).mean(axes, keepdims=True)
        return (x - mean) / jnp.sqrt(variance + 1e-5) * scale + bias

    def ours(x, scale, bias):
        if kind == "layer":
            norm = layers.LayerNorm(8, epsilon=1e-5, dtype=jnp.float32)
        else:
            norm = layers.BatchNorm(
                8, epsilon=1e-5, momentum=0.9, dtype=jnp.float32
            )
        norm.scale[...], norm.bias[...] = scale, bias
        return norm(x)

    weight = rng.standard_normal(x.shape)
    found = jax.vjp(lambda *a: ours(*a) * weight, x, scale, bias)
    expected = jax.vjp(lambda *a: plain(*a) * weight, x, scale, bias)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-3)
    grad = jnp.cos(expected[0])
    for a, b in zip(found[1](grad), expected[1](grad), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3 * np.abs(b).max())


def test_batch_norm_keeps_the_unbiased_variance():
    norm = layers.BatchNorm(1, epsilon=1e-5, momentum=0.9, dtype=jnp.float32)
    norm(jnp.array([[1.0], [3.0]]))
    np.testing.assert_allclose(norm.mean[...], 0.1 * 2, rtol=1e-6)
    # Biased, the variance of 1 and 3 is 1; unbiased it is 2.
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * 2, rtol=1e-6)


def test_drop_path_drops_samples_and_keeps_the_mean():
    drop = layers.DropPath(0.25, rngs=nnx.Rngs(0))
    dropped = drop(jnp.ones((4000, 2, 3)))
    values = np.unique(dropped)
    np.testing.assert_allclose(values, [0, 1 / 0.75], rtol=1e-6)
    per_sample = np.asarray(dropped).reshape(4000, -1)
    assert (per_sample == per_sample[:, :1]).all()
    assert abs(per_sample[:, 0].mean() - 1) < 0.05
    drop.deterministic = True
    np.testing.assert_array_equal(drop(jnp.ones((5, 1))), 1)


def test_blocks_drop_different_samples():
    model = jax_models.create_model("tinyvit_demo", 4, drop_path_rate=0.5)
    masks = []
    for _, module in nnx.iter_modules(model):
        if isinstance(module, layers.DropPath) and module.rate > 0:
            module.rate = 0.5
            masks.append(np.asarray(module(jnp.ones((64, 1))))[:, 0])
    assert len(masks) == 8
    assert len(np.unique(masks, axis=0)) == len(masks)


def test_drop_path_rises_linearly_over_all_blocks():
    model = jax_models.create_model("convnextv2_demo", 4, drop_path_rate=0.4)
    rates = [
        block.drop_path.rate for stage in model.stages for block in stage.blocks
    ]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3, 0.4])


def test_initial_weights_are_as_published():
    convnext = jax_models.create_model("convnextv2_demo", 4)
    kernel = convnext.stages[3].blocks[0].mlp.fc1.kernel[...]
    assert abs(float(kernel.std()) - 0.02) < 1e-3
    assert not convnext.stages[3].blocks[0].mlp.grn.scale[...].any()

    tinyvit = jax_models.create_model("tinyvit_demo", 4)
    block = tinyvit.stages[0].blocks[0]
    assert not block.conv3.bn.scale[...].any()
    # PyTorch's default for a convolution: uniform in +-1/sqrt(fan_in).
    for kernel, fan_in in (
        (block.conv2.conv.kernel[...], 9),
        (tinyvit.patch_embed.conv2.conv.kernel[...], 9 * 16),
    ):
        limit = fan_in**-0.5
        assert 0.95 * limit < float(jnp.abs(kernel).max()) <= limit
    assert not tinyvit.stages[1].blocks[0].attn.attention_biases[...].any()

    efficient = jax_models.create_model("efficientnetv2_demo", 4)
    block = efficient.blocks[3][0]
    for kernel, fan_out in (
        (block.conv_dw.kernel[...], 9),
        (block.conv_pw.kernel[...], 192),
    ):
        assert abs(float(kernel.std()) / (2 / fan_out) ** 0.5 - 1) < 0.1


def test_init_is_a_function_of_the_key():
    @jax.jit
    def kernel(key):
        model = jax_models.create_model("miniconvnext_demo", 4, nnx.Rngs(key))
        blocks = model.stages[2].blocks
        return [block.mlp.fc1.kernel[...] for block in blocks]

    first, again, other = (kernel(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.allclose(first[0], other[0])
    assert not np.allclose(first[0], first[1])
