"""Learning-rate schedules and AdamW, for encoder, head and frozen parts.

A schedule maps the step inside a stage, 0 to T - 1, to a rate. The first
step uses schedule(0) and the last uses schedule(T - 1), so a stage ends
exactly at its floor. Schedules are of NumPy: the compiled step reads tables,
and every operation of JAX outside of it would be compiled on its own.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from training.loop import adamw, param_groups

# Rate tables have a multiple of this many entries.
TABLE_UNIT = 4096

# Of Adam: added to the root of the mean square.
EPSILON = 1e-8


def make_schedule(
    stage: ConfigDict, steps: int, steps_per_epoch: int, group: str = "encoder"
) -> optax.Schedule:
    """Returns the stage's learning rate as a function of its own step.

    one_cycle: Smith & Topin 2018, with cosine annealing both ways as in
    torch's OneCycleLR. cosine and warm_restarts: Loshchilov & Hutter 2017
    (SGDR); a last cycle that the stage would cut is shortened to end at the
    floor. warmup_cosine: a straight line up from peak / warm-up steps, then
    cosine (Goyal et al. 2017). step: times `step_factor` every `step_epochs`.

    Args:
      stage: a `configs.common.stage`.
      steps: length of the stage, T.
      steps_per_epoch: converts `restart_epochs` and `step_epochs` to steps.
      group: "encoder" or "head" (`training.loop.param_groups`).

    Returns:
      A function of a step, or of an array of steps, to rates.
    """
    peak, floor = stage.learning_rate, stage.end_rate
    if group == "head" and stage.head_learning_rate:
        if stage.schedule == "one_cycle":
            floor *= stage.head_learning_rate / peak
        peak = stage.head_learning_rate
    if stage.schedule == "constant":
        return lambda step: np.full(np.shape(step), peak)
    if stage.schedule == "cosine":
        return lambda step: _cosine(step, steps - 1, peak, floor)
    if stage.schedule == "warmup_cosine":
        return _warmup_cosine(steps, stage.warmup, peak, floor)
    if stage.schedule == "one_cycle":
        return _one_cycle(
            steps, stage.warmup, peak * stage.start_factor, peak, floor
        )
    if stage.schedule == "step":
        every = max(1, round(stage.step_epochs * steps_per_epoch))
        return lambda step: peak * stage.step_factor ** (step // every)
    if stage.schedule == "warm_restarts":
        first = max(1, round(stage.restart_epochs * steps_per_epoch))
        return _warm_restarts(steps, first, stage.restart_factor, peak, floor)
    raise ValueError(f"no schedule is called {stage.schedule!r}")


def logged_rates(
    stage: ConfigDict, steps: int, steps_per_epoch: int
) -> dict[str, optax.Schedule]:
    """Returns the learning rates that are worth logging, by name.

    `head_learning_rate` is there when the head has its own; where the
    encoder is frozen, `learning_rate` is the head's.
    """

    def make(group: str) -> optax.Schedule:
        return make_schedule(stage, steps, steps_per_epoch, group)

    if param_groups.ENCODER in stage.frozen:
        return {"learning_rate": make("head")}
    if stage.head_learning_rate:
        return {
            "learning_rate": make("encoder"),
            "head_learning_rate": make("head"),
        }
    return {"learning_rate": make("encoder")}


def rate_tables(
    stage: ConfigDict, steps: int, steps_per_epoch: int, factor: float = 1.0
) -> dict[str, jax.Array]:
    """Returns each group's rate at every step of the stage.

    A compiled step reads its rate from here rather than computing it, so
    stages and folds that differ in the schedule alone share one compilation.
    For the same reason the tables are filled up to a round length.

    Args:
      stage: a `configs.common.stage`.
      steps: length of the stage, T.
      steps_per_epoch: converts epochs to steps.
      factor: what all rates are multiplied by.

    Returns:
      "encoder" and "head": float32 [T rounded up].
    """
    length = -(-steps // TABLE_UNIT) * TABLE_UNIT
    at = np.minimum(np.arange(length), steps - 1)
    tables = {}
    for group in ("encoder", "head"):
        schedule = make_schedule(stage, steps, steps_per_epoch, group)
        tables[group] = jnp.asarray(factor * schedule(at), jnp.float32)
    return tables


def _cosine(step, length: float, start: float, end: float) -> np.ndarray:
    """Half a cosine from `start` at step 0 to `end` at step `length`."""
    done = np.clip(step / max(length, 1), 0.0, 1.0)
    return end + (start - end) * 0.5 * (1 + np.cos(math.pi * done))


def _warmup_cosine(
    steps: int, warmup: float, peak: float, end: float
) -> optax.Schedule:
    rising = round(warmup * steps)  # steps before the peak
    rest = steps - 1 - rising

    def schedule(step):
        up = peak * (step + 1) / (rising + 1)
        down = _cosine(step - rising, rest, peak, end)
        return np.where(step < rising, up, down)

    return schedule


def _one_cycle(
    steps: int, warmup: float, start: float, peak: float, end: float
) -> optax.Schedule:
    top = max(warmup * steps - 1, 1.0)  # step at which the peak is reached
    rest = max(steps - 1 - top, 1.0)

    def schedule(step):
        up = _cosine(step, top, start, peak)
        down = _cosine(step - top, rest, peak, end)
        return np.where(step <= top, up, down)

    return schedule


def _warm_restarts(
    steps: int, first: int, factor: float, peak: float, floor: float
) -> optax.Schedule:
    starts, lengths = [0], [first]
    while starts[-1] + lengths[-1] < steps:
        starts.append(starts[-1] + lengths[-1])
        lengths.append(max(1, round(lengths[-1] * factor)))
    lengths[-1] = steps - starts[-1]

    def schedule(step):
        cycle = np.searchsorted(starts, step, side="right") - 1
        position = step - np.array(starts)[cycle]
        length = np.maximum(np.array(lengths)[cycle] - 1, 1)
        return _cosine(position / length, 1, peak, floor)

    return schedule


def decay_mask(params: Any) -> Any:
    """Returns which parameters weight decay applies to: kernels alone.

    Biases, norm scales, GRN's gamma and beta and attention-bias tables are
    left out, as in the recipes of the papers (and unlike a bare AdamW).

    Args:
      params: nested dict of parameters.

    Returns:
      The same tree of bools.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: path[-1].key == "kernel" and leaf.ndim >= 2, params
    )


def make_optimizer(
    stage: ConfigDict, tables: dict[str, jax.Array] | None = None
) -> optax.GradientTransformation:
    """Returns AdamW (Loshchilov & Hutter 2019) as the stage asks for it.

    Gradients are clipped by global norm first when `clip_norm` is set; weight
    decay is decoupled, scaled by the learning rate, and masked (`decay_mask`).
    The head has rates of its own; frozen parameters have no moments and never
    change by a bit.

    Args:
      stage: a `configs.common.stage`.
      tables: from `rate_tables`, perhaps traced. None for an optimizer that
        only makes its state.
    """

    def adamw(group: str) -> optax.GradientTransformation:
        def rate(count):
            return tables[group][count]

        # optax.adamw, but for how it is traced.
        return optax.chain(
            _leaf_by_leaf(
                optax.scale_by_adam(
                    *stage.betas,
                    eps=EPSILON,
                    # The second moment stays float32: at b2 = .999 a step
                    # changes it by a thousandth, which bfloat16 would round
                    # away.
                    mu_dtype=stage.momentum_dtype,
                )
            ),
            optax.add_decayed_weights(stage.weight_decay, decay_mask),
            optax.scale_by_learning_rate(rate),
        )

    groups = {
        "encoder": adamw("encoder"),
        "head": adamw("head"),
        "frozen": optax.set_to_zero(),
    }
    optimizer = optax.partition(
        groups, functools.partial(param_groups.groups, frozen=stage.frozen)
    )
    if not stage.clip_norm:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(stage.clip_norm), optimizer)


def _leaf_by_leaf(
    adam: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Returns `scale_by_adam` traced once for all parameters of a shape.

    Otherwise it is traced operation by operation for every parameter, at
    every start.
    """
    of_leaf = jax.jit(adam.update)

    def update(grads, state, params=None):
        leaves, structure = jax.tree.flatten(grads)
        if not leaves:
            return adam.update(grads, state, params)
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

    return optax.GradientTransformation(adam.init, update)


def global_norm(grads: Any) -> jax.Array:
    """Returns the norm of all numbers of a tree together: float32 []."""
    if adamw.serves(grads):
        return adamw.global_norm(jax.tree.leaves(grads))
    return optax.tree.norm(grads)


def advance(
    stage: ConfigDict,
    tables: dict[str, jax.Array],
    grads: Any,
    norm: jax.Array,
    params: Any,
    opt_state: Any,
    finite: jax.Array,
) -> tuple[Any, Any]:
    """Makes one step of `make_optimizer`'s AdamW.

    Args:
      stage: a `configs.common.stage`.
      tables: from `rate_tables`.
      grads: of the parameters, the same tree.
      norm: their `global_norm`.
      params: nested dict.
      opt_state: of the optimizer.
      finite: bool []; where false, the optimizer counts the step, and changes
        nothing else.

    Returns:
      The parameters and the state after the step.
    """
    if adamw.serves(params, grads, _moments_of(opt_state)):
        return _advance_at_once(
            stage, tables, grads, norm, params, opt_state, finite
        )
    optimizer = make_optimizer(stage, tables)
    updates, after = optimizer.update(grads, opt_state, params)
    moved = optax.apply_updates(params, updates)
    return keep_if(finite, (moved, after), (params, opt_state))


def keep_if(finite: jax.Array, new: Any, old: Any) -> Any:
    """`new` where the step was finite, else `old`; counters go on anyway."""

    def choose(new, old):
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return jax.lax.select(finite, new, old)

    return jax.tree.map(choose, new, old)


def _is_adam(state: Any) -> bool:
    return isinstance(state, optax.ScaleByAdamState)


def _moments_of(opt_state: Any) -> list[Any]:
    leaves = jax.tree.leaves(opt_state, is_leaf=_is_adam)
    return [(one.mu, one.nu) for one in leaves if _is_adam(one)]


def _advance_at_once(stage, tables, grads, norm, params, opt_state, finite):
    """`advance` by one call, which knows the groups that learn."""
    clipped = bool(stage.clip_norm)
    partition = opt_state[1] if clipped else opt_state
    scale = 1.0
    if clipped:
        scale = jnp.where(norm < stage.clip_norm, 1.0, stage.clip_norm / norm)
    labels = jax.tree.leaves(param_groups.groups(params, stage.frozen))
    decays = [
        stage.weight_decay if decays else 0.0
        for decays in jax.tree.leaves(decay_mask(params))
    ]
    leaves, structure = jax.tree.flatten(params)
    grads_of = jax.tree.leaves(grads)
    groups, taken, moments = ("encoder", "head"), [], []
    for group in groups:
        adam, _, schedule = partition.inner_states[group].inner_state
        rows = [i for i, label in enumerate(labels) if label == group]
        taken.append(rows)
        moments.append(
            adamw.Moments(
                means=jax.tree.leaves(adam.mu),
                squares=jax.tree.leaves(adam.nu),
                rate=tables[group][schedule.count],
                count=optax.safe_increment(adam.count),
                decays=[decays[row] for row in rows],
            )
        )
    done = adamw.update(
        [[leaves[row] for row in rows] for rows in taken],
        [[grads_of[row] for row in rows] for rows in taken],
        moments,
        scale,
        finite,
        betas=stage.betas,
        epsilon=EPSILON,
    )
    inner = dict(partition.inner_states)
    for group, rows, found, before in zip(
        groups, taken, done, moments, strict=True
    ):
        for row, moved in zip(rows, found[0], strict=True):
            leaves[row] = moved
        adam, decay, schedule = inner[group].inner_state
        adam = optax.ScaleByAdamState(
            before.count,
            jax.tree.unflatten(jax.tree.structure(adam.mu), found[1]),
            jax.tree.unflatten(jax.tree.structure(adam.nu), found[2]),
        )
        schedule = schedule._replace(count=optax.safe_increment(schedule.count))
        inner[group] = inner[group]._replace(
            inner_state=(adam, decay, schedule)
        )
    after = partition._replace(inner_states=inner)
    return (
        jax.tree.unflatten(structure, leaves),
        (opt_state[0], after) if clipped else after,
    )
