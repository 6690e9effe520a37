"""Small parts of networks, and one block with its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jax_models
from jax_models import mae


def small_autoencoder(encoder):
    """A masked autoencoder of a classifier of the registry."""
    model = jax_models.create_model(encoder, 1)
    del model.head
    options = dict(width=16, depth=1, heads=2, mlp_width=16)
    return mae.MaskedAutoencoder(model, rngs=nnx.Rngs(0), **options)


def value_and_grads(block, x):
    """What `block(x)` gives, undifferentiated, and all its gradients."""
    graphdef, params, rest = nnx.split(block, nnx.Param, ...)

    @jax.jit
    def compute(params, x):
        def apply(params, x):
            return nnx.merge(graphdef, params, rest, copy=True)(x)

        value, back = jax.vjp(apply, params, x)
        return apply(params, x), back(jnp.cos(value))

    return jax.tree.map(np.asarray, compute(params, x))


def assert_close(found, right, tolerance):
    for one, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(right), strict=True
    ):
        room = tolerance * np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=room)
