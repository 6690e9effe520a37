"""The architecture that docs/models.md adds works, in all that it promises."""

from __future__ import annotations

import re
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_models
from jax_models import mae, registry

DOCS = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.fixture
def plainnet(monkeypatch):
    section = DOCS.read_text().partition("## Add an architecture")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    assert len(code.splitlines()) < 40
    module = types.ModuleType("plainnet")
    monkeypatch.setitem(__import__("sys").modules, "plainnet", module)
    exec(compile(code, str(DOCS), "exec"), vars(module))
    (row,) = re.findall(r"The row is `\((.*), (.*)\)`", section)
    row = tuple(eval(part, {"plainnet": module}) for part in row)
    for table in ("_CLASSIFIERS", "_MODELS"):
        rows = (*getattr(registry, table), row)
        monkeypatch.setattr(registry, table, rows)
    return "plainnet"


@pytest.mark.slow
def test_it_learns_is_listed_and_goes_to_pytorch_and_back(plainnet):
    assert plainnet in jax_models.list_models()
    model = jax_models.create_model(plainnet, 3, remat=True)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    labels = jnp.arange(6) % 3
    images = np.random.default_rng(0).normal(size=(6, 32, 40, 3))
    images = jnp.asarray(images) + labels[:, None, None, None]

    @jax.jit
    def step(params):
        def loss(params):
            logits = nnx.merge(graphdef, params, rest, copy=True)(images)
            chosen = jax.nn.log_softmax(logits)[jnp.arange(6), labels]
            return -chosen.mean()

        value, grads = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    losses = []
    for _ in range(30):
        value, params = step(params)
        losses.append(float(value))
    assert losses[-1] < 0.8 * losses[0]
    exported = jax_models.export_torch(model)
    assert exported["convs.0.weight"].shape == (16, 3, 3, 3)
    other = jax_models.create_model(plainnet, 3, nnx.Rngs(5))
    model.eval(), other.eval()
    jax_models.import_torch(other, exported)
    np.testing.assert_array_equal(other(images), model(images))


def test_it_is_an_encoder(plainnet):
    def outputs(images, mask):
        network = jax_models.create_model(
            "unet", 4, encoder=plainnet, channels=(8, 8, 8)
        )
        encoder = jax_models.create_model(plainnet, 1)
        options = dict(width=16, depth=1, heads=2, mlp_width=16)
        painter = mae.MaskedAutoencoder(encoder, rngs=nnx.Rngs(0), **options)
        return network(images), painter(images, mask)

    pixels, painted = nnx.eval_shape(
        outputs, jnp.zeros((1, 24, 16, 3)), jnp.zeros((1, 3, 2), bool)
    )
    assert pixels.shape == (1, 24, 16, 4)
    assert painted.shape == (1, 3, 2, 8 * 8 * 3)
