"""AdamW over parameter groups."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jax_models import cpu_kernels
from training.loop import param_groups, schedules
from training.loop.param_groups import ParamGroup

# Rate tables have a multiple of this many entries.
TABLE_UNIT = 4096

# Of Adam: added to the root of the mean square.
EPSILON = 1e-8


def rate_tables(
    stage: ConfigDict,
    groups: Any,
    steps: int,
    steps_per_epoch: int,
    factor: float = 1.0,
) -> jax.Array:
    """Returns each rate at every step of the stage.

    A compiled step reads its rate from here rather than computing it, so
    stages and folds that differ in the schedule alone share one compilation.
    For the same reason the tables are filled up to a round length.

    Args:
      stage: a `configs.common.stage`.
      groups: of the parameters, from `param_groups.assign`.
      steps: length of the stage, T.
      steps_per_epoch: converts epochs to steps.
      factor: what all rates are multiplied by.

    Returns:
      float32 [R, T rounded up], a row for each of `param_groups.rates`.
    """
    length = -(-steps // TABLE_UNIT) * TABLE_UNIT
    at = np.minimum(np.arange(length), steps - 1)
    tables = [
        schedules.make_schedule(stage, steps, steps_per_epoch, rate)(at)
        for rate in param_groups.rates(groups)
    ]
    return jnp.asarray(factor * np.stack(tables), jnp.float32)


def init(params: Any, groups: Any, stage: ConfigDict) -> optax.ScaleByAdamState:
    """Returns the state of AdamW: moments of what learns, and a count.

    Args:
      params: nested dict.
      groups: of the parameters, from `param_groups.assign`.
      stage: a `configs.common.stage`.
    """
    return _adam(stage).init(_learning(params, groups))


def global_norm(grads: Any) -> jax.Array:
    """Returns the norm of all numbers of a tree together: float32 []."""
    if cpu_kernels.supports_adamw(grads):
        return cpu_kernels.global_norm(jax.tree.leaves(grads))
    return optax.tree.norm(grads)


def advance(
    stage: ConfigDict,
    groups: Any,
    tables: jax.Array,
    grads: Any,
    norm: jax.Array,
    params: Any,
    state: optax.ScaleByAdamState,
    finite: jax.Array,
) -> tuple[Any, optax.ScaleByAdamState]:
    """Makes one step of AdamW (Loshchilov & Hutter 2019).

    Gradients are clipped by global norm first where `clip_norm` is set; weight
    decay is decoupled and scaled by the learning rate. Frozen parameters have
    no moments and never change by a bit.

    Args:
      stage: a `configs.common.stage`.
      groups: of the parameters, from `param_groups.assign`.
      tables: from `rate_tables`.
      grads: of the parameters, the same tree.
      norm: their `global_norm`.
      params: nested dict.
      state: from `init`.
      finite: bool []; where false, the optimizer counts the step, and changes
        nothing else.

    Returns:
      The parameters and the state after the step.
    """
    rate_at = dict(
        zip(param_groups.rates(groups), tables[:, state.count], strict=True)
    )
    scale = jnp.float32(1.0)
    if stage.clip_norm:
        scale = jnp.where(norm < stage.clip_norm, 1.0, stage.clip_norm / norm)
    if cpu_kernels.supports_adamw(params, grads, (state.mu, state.nu)):
        return _advance_in_cpp(
            stage, groups, rate_at, grads, scale, params, state, finite
        )
    if stage.clip_norm:
        grads = jax.tree.map(lambda grad: grad * scale, grads)
    updates, after = _leaf_by_leaf(
        _adam(stage), _learning(grads, groups), state
    )

    def move(group: ParamGroup, param: jax.Array, update: Any) -> jax.Array:
        if group.frozen:
            return param
        rate = rate_at[group.rate]
        return param - rate * (update + group.weight_decay * param)

    moved = jax.tree.map(move, groups, params, updates)
    return keep_if(finite, (moved, after), (params, state))


def keep_if(finite: jax.Array, new: Any, old: Any) -> Any:
    """`new` where the step was finite, else `old`; counters go on anyway."""

    def choose(new, old):
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return jax.lax.select(finite, new, old)

    return jax.tree.map(choose, new, old)


def _adam(stage: ConfigDict) -> optax.GradientTransformation:
    return optax.scale_by_adam(*stage.betas, eps=EPSILON)


def _learning(tree: Any, groups: Any) -> Any:
    """The tree with optax's placeholder for what is frozen."""
    return jax.tree.map(
        lambda group, leaf: optax.MaskedNode() if group.frozen else leaf,
        groups,
        tree,
    )


def _leaf_by_leaf(
    adam: optax.GradientTransformation, grads: Any, state: Any
) -> tuple[Any, Any]:
    """`adam.update`, traced once for all parameters of a shape.

    Otherwise it is traced operation by operation for every parameter, at
    every start.
    """
    of_leaf = jax.jit(adam.update)
    leaves, structure = jax.tree.flatten(grads)
    done = [
        of_leaf(leaf, state._replace(mu=mu, nu=nu))
        for leaf, mu, nu in zip(
            leaves,
            jax.tree.leaves(state.mu),
            jax.tree.leaves(state.nu),
            strict=True,
        )
    ]
    updates, states = zip(*done, strict=True)

    def tree_of(leaves):
        return jax.tree.unflatten(structure, leaves)

    return tree_of(updates), states[0]._replace(
        mu=tree_of([one.mu for one in states]),
        nu=tree_of([one.nu for one in states]),
    )


def _advance_in_cpp(
    stage, groups, rate_at, grads, scale, params, state, finite
):
    """`advance` by one call, which overwrites parameters and moments."""
    leaves, structure = jax.tree.flatten(params)
    grads = jax.tree.leaves(grads)
    group_of = jax.tree.leaves(groups)
    learning = [i for i, group in enumerate(group_of) if not group.frozen]
    count = optax.safe_increment(state.count)
    moved, mu, nu = cpu_kernels.adamw(
        [leaves[i] for i in learning],
        [grads[i] for i in learning],
        jax.tree.leaves(state.mu),
        jax.tree.leaves(state.nu),
        rates=jnp.stack([rate_at[group_of[i].rate] for i in learning]),
        decays=[group_of[i].weight_decay for i in learning],
        scale=scale,
        count=count,
        finite=finite,
        betas=stage.betas,
        epsilon=EPSILON,
    )
    for i, param in zip(learning, moved, strict=True):
        leaves[i] = param
    like = jax.tree.structure(state.mu)
    return jax.tree.unflatten(structure, leaves), state._replace(
        count=count,
        mu=jax.tree.unflatten(like, mu),
        nu=jax.tree.unflatten(like, nu),
    )
