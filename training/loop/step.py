"""The one jitted step that advances a training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jax_models import cpu_kernels
from training.loop import grad_accumulation, optimizer, param_groups
from training.loop import state as state_lib
from training.loop.state import AbstractModel, TrainState
from training.multihost import sharding

Batch = dict[str, jax.Array]


def _as_it_is(batch: Batch, constants: Any, key: jax.Array) -> Batch:
    return batch


class Loss(NamedTuple):
    """What a stage minimises.

    Attributes:
      function: (model, prepared batch, constants) -> mean loss over the
        batch's rows, each counting as much as its `weight` says; or that and
        a dict of scalars to log, those of the logged step alone.
      constants: a tree of arrays that the functions read, such as a teacher's
        weights. Passed to the compiled step rather than built into it, so
        runs that differ in them alone share the compilation.
      prepare: (batch, constants, key) -> prepared batch, a dict of arrays
        `[B, ...]`. All that is random about the batch happens here, to the
        whole of it; what follows may see it part by part.
    """

    function: Callable[
        [nnx.Module, Batch, Any], jax.Array | tuple[jax.Array, dict]
    ]
    constants: Any
    prepare: Callable[[Batch, Any, jax.Array], Batch] = _as_it_is


class TrainStep(NamedTuple):
    """A jitted step with what it reads besides state and batch."""

    jitted: Any
    constants: Any
    tables: jax.Array

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
    tables: jax.Array,
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
    What else the loss tells is of this step alone.

    Args:
      abstract_model: of the model.
      loss: what to minimise.
      stage: a `configs.common.stage`: optimizer, frozen parts, EMA.
      tables: its learning rates, from `optim.rate_tables`.
      mesh: that the state and the batches lie on.
      seed: of the run.
      log_every_steps: of which steps the log tells.
    """

    ema_decay = stage.ema_decay
    params_shape = nnx.to_pure_dict(abstract_model.params)
    groups = param_groups.assign(params_shape, stage)

    @cpu_kernels.for_mesh(mesh)
    def train_step(state: TrainState, batch: Batch, constants: Any, tables):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        model_key, loss_key = jax.random.split(key)

        def loss_of(params, batch):
            params = param_groups.stop_frozen_gradients(params, stage)
            model = abstract_model.merge(params, state.batch_stats, model_key)
            param_groups.set_train_mode(model, stage)
            value, told = loss.function(model, batch, constants), {}
            if isinstance(value, tuple):
                value, told = value
            _, _, batch_stats, _ = state_lib.split(model)
            return value, (nnx.to_pure_dict(batch_stats), told)

        batch = loss.prepare(batch, constants, loss_key)
        grads_of = grad_accumulation.accumulate_grads(loss_of, stage.accumulate)
        (value, (batch_stats, told)), grads = grads_of(
            sharding.gather_params(state.params, mesh), batch
        )
        grads = sharding.scatter_grads(grads, mesh)
        norm = optimizer.global_norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        params, opt_state = optimizer.advance(
            stage,
            groups,
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
            **told,
            "skipped": skipped["in_all"],
            "skipped_in_a_row": skipped["in_a_row"],
        }
        step = state.step + 1
        closed = step % log_every_steps == 0
        window = jax.tree.map(
            lambda full, empty: jnp.where(closed, empty, full),
            window,
            state_lib.empty_window(),
        )
        after = TrainState(
            step, params, batch_stats, opt_state, ema, window, skipped
        )
        return after, metrics

    places = sharding.shardings_of(
        state_lib.abstract_state(abstract_model, stage, mesh)
    )
    jitted = jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=(places, sharding.replicated(mesh)),
    )
    constants, tables = sharding.put_constants((loss.constants, tables), mesh)
    return TrainStep(jitted, constants, tables)
