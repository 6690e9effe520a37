"""The state of a training run, and the model without its numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jax.sharding import Mesh
from ml_collections import ConfigDict

from training.loop import optimizer, param_groups
from training.multihost import sharding


@struct.dataclass
class TrainState:
    """All that a step reads and writes; what a checkpoint holds.

    Attributes:
      step: int32 [], steps done since the run began, over all stages.
      params: nested dict of float32 parameters.
      batch_stats: nested dict of BatchNorm statistics; may be empty.
      opt_state: the optimizer's state, fresh in each stage.
      ema: moving averages of `params` and `batch_stats`, under these names;
        empty when the stage keeps none.
      window: sums of loss and gradient norm, and the count of steps, since
        the last logged step. In the state, so that resuming loses none.
      skipped: int32 [] each: how many steps had a loss or a gradient that
        was not finite, `in_a_row` until now and `in_all` of the stage.
    """

    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: Any
    ema: dict
    window: dict[str, jax.Array]
    skipped: dict[str, jax.Array]

    @property
    def weights(self) -> tuple[dict, dict]:
        """(params, batch_stats) to evaluate: averages if there are any.

        Statistics are averaged with the parameters, since those of the raw
        model belong to other weights.
        """
        if self.ema:
            return self.ema["params"], self.ema["batch_stats"]
        return self.params, self.batch_stats


class AbstractModel(NamedTuple):
    """A model without its numbers: what `merge` needs to make it callable.

    Attributes:
      graphdef, params, batch_stats, rng: its parts, shapes for arrays.
      draw: returns pure dicts of fresh (params, batch_stats).
    """

    graphdef: nnx.GraphDef
    params: nnx.State
    batch_stats: nnx.State
    rng: nnx.State
    draw: Callable[[], tuple[dict, dict]]

    def merge(
        self, params: dict, batch_stats: dict, key: jax.Array | None = None
    ) -> nnx.Module:
        """Returns a model with these numbers, for use inside a traced step.

        Args:
          params: nested dict, as in `TrainState`.
          batch_stats: nested dict, as in `TrainState`.
          key: this step's key. Each random layer of the model gets a key of
            its own from it, so drop path and dropout are a function of the
            key alone: nothing random needs to be saved.
        """
        key = jax.random.key(0) if key is None else key
        leaves, structure = jax.tree.flatten(self.rng)
        keys = _keys_of(key, len(leaves))
        rng = [
            keys[i]
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else jnp.zeros(leaf.shape, leaf.dtype)
            for i, leaf in enumerate(leaves)
        ]
        return nnx.merge(
            self.graphdef,
            _like(self.params, params),
            _like(self.batch_stats, batch_stats),
            jax.tree.unflatten(structure, rng),
            copy=True,  # else BatchNorm would write into outer-trace arrays
        )


def make_abstract_model(build: Callable[[], nnx.Module]) -> AbstractModel:
    """Returns `build()` without its numbers, of which none is computed."""
    built = []

    def draw():
        graphdef, *states = split(build())
        built.append((graphdef, *jax.tree.map(_shape, states)))
        params, batch_stats, _ = states
        return nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)

    jax.eval_shape(draw)  # JAX remembers what it traced for `init_weights`.
    return AbstractModel(*built[0], draw)


def init_weights(
    abstract_model: AbstractModel, mesh: Mesh
) -> tuple[dict, dict]:
    """Returns fresh (params, batch_stats), made on the devices.

    One compiled program: layer by layer, a large model takes many seconds.
    """
    placed = sharding.with_shardings(jax.eval_shape(abstract_model.draw), mesh)
    return jax.jit(
        abstract_model.draw, out_shardings=sharding.shardings_of(placed)
    )()


def start_stage(
    step: int,
    params: dict,
    batch_stats: dict,
    stage: ConfigDict,
    mesh: Mesh,
) -> TrainState:
    """Returns the state before the first step of a stage.

    Args:
      step: global steps done so far.
      params: weights to start from.
      batch_stats: statistics to start from.
      stage: a `configs.common.stage`, for a fresh optimizer and EMA.
      mesh: to place the state on.
    """
    start = functools.partial(_start, stage)
    step = np.int32(step)
    placed = sharding.with_shardings(
        jax.eval_shape(start, step, params, batch_stats), mesh
    )
    return jax.jit(start, out_shardings=sharding.shardings_of(placed))(
        step, params, batch_stats
    )


def abstract_state(
    abstract_model: AbstractModel, stage: ConfigDict, mesh: Mesh
) -> TrainState:
    """Returns the shapes and placements of a stage's state, to restore into."""
    start = functools.partial(_start, stage)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    shapes = jax.eval_shape(start, step, *pure_shapes(abstract_model))
    return sharding.with_shardings(shapes, mesh)


def abstract_weights(
    abstract_model: AbstractModel, mesh: Mesh
) -> tuple[dict, dict]:
    """Returns (params, batch_stats) as shapes and placements."""
    shapes = pure_shapes(abstract_model)
    # By the names that they have in a state, which the rules may ask for.
    named = dict(zip(("params", "batch_stats"), shapes, strict=True))
    placed = sharding.with_shardings(named, mesh)
    return placed["params"], placed["batch_stats"]


def count(params: dict) -> int:
    """Returns the number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _start(stage: ConfigDict, step, params, batch_stats) -> TrainState:
    averaged = {"params": params, "batch_stats": batch_stats}
    return TrainState(
        step=step,
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(
            params, param_groups.assign(params, stage), stage
        ),
        ema=jax.tree.map(jnp.copy, averaged) if stage.ema_decay else {},
        window=empty_window(),
        skipped={"in_a_row": jnp.int32(0), "in_all": jnp.int32(0)},
    )


def pure_shapes(abstract_model: AbstractModel) -> tuple[dict, dict]:
    """Returns the shapes of (params, batch_stats) as nested dicts."""
    return (
        nnx.to_pure_dict(abstract_model.params),
        nnx.to_pure_dict(abstract_model.batch_stats),
    )


def split(model: nnx.Module):
    """Returns (graphdef, params, batch_stats, rng) of a model."""
    return nnx.split(model, nnx.Param, nnx.BatchStat, nnx.RngState)


def _keys_of(key: jax.Array, count: int) -> jax.Array:
    """`jax.random.fold_in(key, i)` for every i below `count`, at once."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))


def _shape(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _like(state: nnx.State, pure: dict) -> nnx.State:
    """Puts the leaves of a pure dict into the wrappers of an nnx.State."""
    return jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(pure))


def empty_window() -> dict[str, jax.Array]:
    """Returns the sums of no steps at all; see `TrainState.window`."""
    return {
        "loss": jnp.zeros((), jnp.float32),
        "grad_norm": jnp.zeros((), jnp.float32),
        "steps": jnp.zeros((), jnp.int32),
    }
