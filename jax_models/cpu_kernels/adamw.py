"""AdamW for all parameters in one pass over memory, in C++ (adamw.cc).

XLA's CPU backend compiles and runs several loops for each parameter. The step
is that of optax's `scale_by_adam`, `add_decayed_weights` and a learning rate,
which training/loop/optimizer.py takes wherever this does not `support` it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_models.cpu_kernels import dispatch


def supports_adamw(*trees: Any) -> bool:
    """Whether `adamw` and `global_norm` take all arrays of these trees."""
    leaves = jax.tree.leaves(trees)
    return all(
        leaf.dtype == jnp.float32 for leaf in leaves
    ) and dispatch.in_cpp("adamw", *leaves)


def global_norm(arrays: Sequence[Float[Array, ...]]) -> Float[Array, ""]:
    """Returns the L2 norm of all numbers of float32 arrays together."""
    norm = jax.ShapeDtypeStruct((), jnp.float32)
    return dispatch.call("sextet_global_norm", norm, *arrays)


def adamw(
    params: Sequence[Float[Array, ...]],
    grads: Sequence[Float[Array, ...]],
    mu: Sequence[Float[Array, ...]],
    nu: Sequence[Float[Array, ...]],
    *,
    rates: Float[Array, " N"],
    decays: Sequence[float],
    scale: Float[Array, ""] | float,
    count: Int[Array, ""],
    finite: Bool[Array, ""],
    betas: Sequence[float],
    epsilon: float,
) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array]]:
    """Makes one step of AdamW (Loshchilov & Hutter 2019) on N parameters.

    Args:
      params: N float32 arrays.
      grads: their gradients.
      mu: moving averages of the gradients.
      nu: moving averages of their squares.
      rates: the learning rate of each parameter.
      decays: weight decay of each parameter, times its rate.
      scale: multiplies all gradients, to clip them.
      count: steps that the averages are of, this one included.
      finite: where false, nothing changes.
      betas: decay of the two averages.
      epsilon: added to the root of the mean square.

    Returns:
      params, mu and nu after the step, in the memory of the arguments where
      XLA may overwrite those.
    """
    size = len(params)
    corrections = [1 - beta**count for beta in betas]
    scalars = jnp.stack(
        [jnp.asarray(x, jnp.float32) for x in (finite, scale, *corrections)]
    )
    state = [*params, *mu, *nu]
    after = dispatch.call(
        "sextet_adamw",
        [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in state],
        *(scalars, rates, *grads, *state),
        aliases={2 + size + i: i for i in range(3 * size)},
        decays=np.asarray(decays, np.float32),
        # 1 - beta in double precision: float32 would round 1 - .999.
        mu_weights=np.array([betas[0], 1 - betas[0]], np.float32),
        nu_weights=np.array([betas[1], 1 - betas[1]], np.float32),
        epsilon=np.float32(epsilon),
    )
    return after[:size], after[size : 2 * size], after[2 * size :]
