"""Scores of a model over a split, accumulated on the devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jax_models import cpu_kernels
from training.loop.state import AbstractModel
from training.multihost import sharding


class Evaluator(Protocol):
    """A score that accumulates over batches, on the devices.

    A confusion matrix, say, rather than the outputs of a whole split on the
    host. `update` is traced into one jitted step with the model's forward
    pass; what it needs besides is passed in as constants.
    """

    def init(self) -> Any:
        """Returns the totals over no batch: a tree of arrays."""

    def update(
        self,
        totals: Any,
        model: nnx.Module,
        batch: Mapping[str, jax.Array],
        constants: Any,
    ) -> Any:
        """Returns the totals with a batch added; pure.

        Args:
          totals: so far.
          model: in evaluation mode.
          batch: of `Data.validation`: `image` uint8 [B, V, H, W, 3], further
            features, `weight` float32 [B] (0: filling), `bad` bool [B]
            (unreadable, its pixels are 0), `row` int32 [B].
          constants: `Task.eval_constants`.
        """

    def compute(self, totals: Any) -> dict[str, float]:
        """Returns the scores by name.

        Args:
          totals: over all batches, as NumPy.
        """


# (totals, params, batch_stats, batch) -> totals
EvalStep = Callable[[Any, dict, dict, dict[str, jax.Array]], Any]


def make_eval_step(
    abstract_model: AbstractModel,
    evaluator: Evaluator,
    constants: Any,
    mesh: Mesh,
) -> EvalStep:
    """Returns the jitted step that adds a batch to an evaluator's totals.

    Args:
      abstract_model: of the model.
      evaluator: of the task.
      constants: that its `update` reads. Arguments of the compiled step: folds
        differ in them, and need not compile anew.
      mesh: that the batches are laid out on. The totals are whole on every
        device, so all processes go by the very same scores.
    """

    @cpu_kernels.for_mesh(mesh)
    def step(totals, params, batch_stats, batch, constants):
        model = abstract_model.merge(params, batch_stats)
        model.eval()
        return evaluator.update(totals, model, batch, constants)

    jitted = jax.jit(
        step, donate_argnums=0, out_shardings=sharding.replicated(mesh)
    )
    constants = sharding.put_constants(constants, mesh)
    return lambda *arguments: jitted(*arguments, constants)


def evaluate(
    step: EvalStep,
    evaluator: Evaluator,
    params: dict,
    batch_stats: dict,
    batches: Iterable[dict[str, np.ndarray]],
    mesh: Mesh,
) -> dict[str, float]:
    """Returns the evaluator's scores over `batches`.

    Args:
      step: from `make_eval_step`.
      evaluator: the same.
      params: of the model.
      batch_stats: of the model.
      batches: from `Data.validation`.
      mesh: to lay the batches out on.
    """
    totals = sharding.put_constants(evaluator.init(), mesh)
    for batch in batches:
        placed = sharding.put_batch(batch, mesh)
        totals = step(totals, params, batch_stats, placed)
    return evaluator.compute(jax.device_get(totals))
