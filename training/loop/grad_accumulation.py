"""Loss and gradients of a batch: at once, or part by part to fit memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from core.errors import UserError
from jax_models import layers


def check(config: ConfigDict, batch_stats: Any) -> None:
    """Refuses to divide the batches of a model with BatchNorm.

    Args:
      config: of the run.
      batch_stats: the model's BatchNorm statistics, a tree.

    Raises:
      UserError: which stage would.
    """
    for index, stage in enumerate(config.stages):
        if stage.accumulate > 1 and jax.tree.leaves(batch_stats):
            raise UserError(
                f"stages[{index}].accumulate is {stage.accumulate}, but "
                f"{config.model} has BatchNorm, whose statistics would be "
                "those of a part of the batch; set it to 1, and "
                "--config.remat=True to save memory without changing a number"
            )


# (params, batch) -> (mean loss, what the model changed)
LossOf = Callable[[Any, dict[str, jax.Array]], tuple[jax.Array, Any]]


def accumulate_grads(loss_of: LossOf, count: int) -> Callable[[Any, Any], Any]:
    """Returns `jax.value_and_grad(loss_of)`, taken over `count` parts.

    The parts go through the model one after the other, and so need the
    activations of one part only. Every row is dropped, erased and mixed as in
    the undivided batch, and counts as much; the sums differ by rounding.

    Args:
      loss_of: gives the mean over a batch, rows weighted by `batch["weight"]`.
        The model must not change by what it sees (no BatchNorm), since it
        sees the parts alone.
      count: of the parts; it divides the batch.

    Returns:
      (params, batch) -> ((loss, what the model changed), gradients).
    """
    whole = jax.value_and_grad(loss_of, has_aux=True)
    if count == 1:
        return whole

    def in_parts(params, batch):
        total = jnp.maximum(batch["weight"].sum(), 1.0)

        def add(sums, index):
            # Rows index, index + count, ...: a device's rows stay with it.
            part = jax.tree.map(
                lambda rows: layers.take_microbatch(rows, index, count), batch
            )
            with layers.microbatch(index, count):
                (value, aux), grads = whole(params, part)
            share = part["weight"].sum() / total
            sums = jax.tree.map(
                lambda sum, new: sum + share * new, sums, (value, grads)
            )
            return sums, aux

        zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        (value, grads), aux = jax.lax.scan(add, zeros, jnp.arange(count))
        return (value, jax.tree.map(lambda every: every[-1], aux)), grads

    return in_parts
