"""The state of a training run and the one jitted step that advances it."""

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

from training.loop import grad_accumulation, optimizer, param_groups
from training.multihost import sharding

Batch = dict[str, jax.Array]


def _as_it_is(batch: Batch, constants: Any, key: jax.Array) -> Batch:
    return batch


class Loss(NamedTuple):
    """What a stage minimises.

    Attributes:
      function: (model, prepared batch, constants) -> mean loss over the
        batch's rows, each counting as much as its `mask` says.
      constants: a tree of arrays that the functions read, such as a teacher's
        weights. Passed to the compiled step rather than built into it, so
        runs that differ in them alone share the compilation.
      prepare: (batch, constants, key) -> prepared batch, a dict of arrays
        `[B, ...]`. All that is random about the batch happens here, to the
        whole of it; what follows may see it part by part.
    """

    function: Callable[[nnx.Module, Batch, Any], jax.Array]
    constants: Any
    prepare: Callable[[Batch, Any, jax.Array], Batch] = _as_it_is


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
    """Returns the abstract_model of `build()`, computing and storing no number."""
    built = []

    def draw():
        graphdef, *states = _split(build())
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
    shapes = jax.eval_shape(start, step, *_pure_shapes(abstract_model))
    return sharding.with_shardings(shapes, mesh)


def abstract_weights(
    abstract_model: AbstractModel, mesh: Mesh
) -> tuple[dict, dict]:
    """Returns (params, batch_stats) as shapes and placements."""
    shapes = _pure_shapes(abstract_model)
    # By the names that they have in a state, which the rules may ask for.
    named = dict(zip(("params", "batch_stats"), shapes, strict=True))
    placed = sharding.with_shardings(named, mesh)
    return placed["params"], placed["batch_stats"]


class TrainStep(NamedTuple):
    """A jitted step with what it reads besides state and batch."""

    jitted: Any
    constants: Any
    tables: dict[str, jax.Array]

    def __call__(
        self, state: TrainState, batch: Batch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Advances the state, which is donated, and measures the step."""
        return self.jitted(state, batch, self.constants, self.tables)

    def lower(self, state: TrainState, batch: Batch) -> jax.stages.Lowered:
        """Returns the step ready to compile; shapes are enough."""
        return self.jitted.lower(state, batch, self.constants, self.tables)


def make_train_step(
    abstract_model: AbstractModel,
    loss: Loss,
    stage: ConfigDict,
    tables: dict[str, jax.Array],
    mesh: Mesh,
    *,
    seed: int,
    log_every_steps: int,
) -> TrainStep:
    """Returns the jitted step: (state, batch) -> (state, metrics).

    The old state is donated: its buffers become the new one's. All randomness
    comes from (seed, global step), whatever the layout of devices. A step
    whose loss or gradient is not finite changes no weight and is counted.

    `loss` and `grad_norm` are means over the finite steps since the last
    logged one (a multiple of `log_every_steps`, at which the window closes),
    NaN if there are none; `skipped` and `skipped_in_a_row` count the others.

    Args:
      abstract_model: of the model.
      loss: what to minimise.
      stage: a `configs.common.stage`: optimizer, frozen parts, EMA.
      tables: its learning rates, from `optim.rate_tables`.
      mesh: that the state and the batches lie on.
      seed: of the run.
      log_every_steps: of which steps the log tells.
    """

    frozen, ema_decay = stage.frozen, stage.ema_decay

    def train_step(state: TrainState, batch: Batch, constants: Any, tables):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        model_key, loss_key = jax.random.split(key)

        def loss_of(params, batch):
            params = param_groups.stop_frozen_gradients(params, frozen)
            model = abstract_model.merge(params, state.batch_stats, model_key)
            param_groups.set_train_mode(model, frozen)
            value = loss.function(model, batch, constants)
            _, _, batch_stats, _ = _split(model)
            return value, nnx.to_pure_dict(batch_stats)

        batch = loss.prepare(batch, constants, loss_key)
        grads_of = grad_accumulation.accumulate_grads(loss_of, stage.accumulate)
        (value, batch_stats), grads = grads_of(
            sharding.gather_params(state.params, mesh), batch
        )
        grads = sharding.scatter_grads(grads, mesh)
        norm = optimizer.global_norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        params, opt_state = optimizer.advance(
            stage,
            tables,
            grads,
            norm,
            state.params,
            state.opt_state,
            finite,
        )
        batch_stats = optimizer.keep_if(finite, batch_stats, state.batch_stats)
        ema = {}
        if ema_decay:
            # A short memory at first, or the average would be mostly the
            # initialisation for thousands of steps.
            steps = state.step.astype(jnp.float32)
            memory = jnp.minimum(ema_decay, (1 + steps) / (10 + steps))
            # In this form, what does not change keeps its very bits.
            ema = jax.tree.map(
                lambda old, new: old + (1 - memory) * (new - old),
                state.ema,
                {"params": params, "batch_stats": batch_stats},
            )
            ema = optimizer.keep_if(finite, ema, state.ema)
        skipped = {
            "in_a_row": jnp.where(finite, 0, state.skipped["in_a_row"] + 1),
            "in_all": state.skipped["in_all"] + jnp.where(finite, 0, 1),
        }
        window = {
            "loss": state.window["loss"] + jnp.where(finite, value, 0.0),
            "grad_norm": state.window["grad_norm"]
            + jnp.where(finite, norm, 0.0),
            "steps": state.window["steps"] + jnp.where(finite, 1, 0),
        }
        metrics = {
            name: window[name] / window["steps"]
            for name in ("loss", "grad_norm")
        }
        metrics |= {
            "skipped": skipped["in_all"],
            "skipped_in_a_row": skipped["in_a_row"],
        }
        step = state.step + 1
        closed = step % log_every_steps == 0
        window = jax.tree.map(
            lambda full, empty: jnp.where(closed, empty, full),
            window,
            _empty_window(),
        )
        after = TrainState(
            step, params, batch_stats, opt_state, ema, window, skipped
        )
        return after, metrics

    places = sharding.shardings_of(abstract_state(abstract_model, stage, mesh))
    jitted = jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=(places, sharding.replicated(mesh)),
    )
    constants, tables = sharding.put_constants((loss.constants, tables), mesh)
    return TrainStep(jitted, constants, tables)


def count(params: dict) -> int:
    """Returns the number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _start(stage: ConfigDict, step, params, batch_stats) -> TrainState:
    averaged = {"params": params, "batch_stats": batch_stats}
    return TrainState(
        step=step,
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.make_optimizer(stage).init(params),
        ema=jax.tree.map(jnp.copy, averaged) if stage.ema_decay else {},
        window=_empty_window(),
        skipped={"in_a_row": jnp.int32(0), "in_all": jnp.int32(0)},
    )


def _pure_shapes(abstract_model: AbstractModel) -> tuple[dict, dict]:
    return (
        nnx.to_pure_dict(abstract_model.params),
        nnx.to_pure_dict(abstract_model.batch_stats),
    )


def _split(model: nnx.Module):
    return nnx.split(model, nnx.Param, nnx.BatchStat, nnx.RngState)


def _keys_of(key: jax.Array, count: int) -> jax.Array:
    """`jax.random.fold_in(key, i)` for every i below `count`, at once."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))


def _shape(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _like(state: nnx.State, pure: dict) -> nnx.State:
    """Puts the leaves of a pure dict into the wrappers of an nnx.State."""
    return jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(pure))


def _empty_window() -> dict[str, jax.Array]:
    return {
        "loss": jnp.zeros((), jnp.float32),
        "grad_norm": jnp.zeros((), jnp.float32),
        "steps": jnp.zeros((), jnp.int32),
    }
