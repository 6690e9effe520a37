"""AdamW for all parameters in one pass over memory, in C++ (adamw.cc).

What optax computes, for one CPU: optim.py says what is computed, and does it
by optax elsewhere.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_models.cpu_kernels import dispatch

CODE = dispatch.code(
    "training",
    [Path(__file__).with_suffix(".cc")],
    flags=["-fno-math-errno"],  # Or square roots come one at a time.
)
HANDLERS = "sextet_adamw", "sextet_global_norm"


class Moments(NamedTuple):
    """What Adam keeps of some parameters, and how they are to move.

    Attributes:
      means, squares: moving averages of gradients and of their squares, one
        array per parameter.
      rate: float32 [], the learning rate.
      count: int32 [], steps that the averages are of, with this one.
      decays: weight decay, a number per parameter.
    """

    means: list[jax.Array]
    squares: list[jax.Array]
    rate: jax.Array
    count: jax.Array
    decays: Sequence[float]


@functools.cache
def _library() -> dispatch.Library | None:
    return dispatch.load(CODE, HANDLERS)


def serves(*trees: Any) -> bool:
    """Whether there is C++ for all arrays of these trees."""
    leaves = jax.tree.leaves(trees)
    narrow = all(leaf.dtype == jnp.float32 for leaf in leaves)
    return narrow and dispatch.on_cpu() and _library() is not None


def global_norm(arrays: Sequence[jax.Array]) -> jax.Array:
    """Returns the norm of all numbers of float32 arrays: float32 []."""
    norm = jax.ShapeDtypeStruct((), jnp.float32)
    return _library().call("sextet_global_norm", norm, *arrays)


def update(
    params: Sequence[Sequence[jax.Array]],
    grads: Sequence[Sequence[jax.Array]],
    moments: Sequence[Moments],
    scale: jax.Array | float,
    good: jax.Array,
    *,
    betas: Sequence[float],
    epsilon: float,
) -> list[tuple[list[jax.Array], list[jax.Array], list[jax.Array]]]:
    """Moves the parameters of one or more groups.

    Args:
      params: of each group, float32 arrays.
      grads: their gradients.
      moments: of each group.
      scale: what gradients are multiplied by.
      good: bool []; where false, nothing changes.
      betas: how much of the averages stays, of means and of squares.
      epsilon: added to the root of the mean square.

    Returns:
      (parameters, means, squares) of each group.
    """
    numbers = [good, scale]
    for group in moments:
        kept = (1 - beta**group.count for beta in betas)
        numbers += [group.rate, *kept]
    numbers = jnp.stack([jnp.asarray(one, jnp.float32) for one in numbers])
    kinds = [
        [array for group in kind for array in group]
        for kind in (
            grads,
            params,
            [group.means for group in moments],
            [group.squares for group in moments],
        )
    ]
    count = len(kinds[0])
    changed = [array for kind in kinds[1:] for array in kind]
    sizes = [len(group) for group in params]
    done = _library().call(
        "sextet_adamw",
        [jax.ShapeDtypeStruct(one.shape, one.dtype) for one in changed],
        numbers,
        *kinds[0],
        *changed,
        in_place={1 + count + i: i for i in range(len(changed))},
        groups=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
        decays=np.array(
            [decay for group in moments for decay in group.decays], np.float32
        ),
        of_mean=np.array([betas[0], 1 - betas[0]], np.float32),
        of_square=np.array([betas[1], 1 - betas[1]], np.float32),
        epsilon=np.float32(epsilon),
    )
    ends = np.cumsum(sizes)
    return [
        tuple(
            done[kind * count + end - size : kind * count + end]
            for kind in range(3)
        )
        for size, end in zip(sizes, ends, strict=True)
    ]
