"""Predictions of a model for given rows, each row exactly once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from input_pipeline.transforms import mixing
from jax_models import cpu_kernels
from training.loop.state import AbstractModel
from training.multihost import sharding


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model says of some rows.

    Attributes:
      logits: float32 [N, V, C], one entry per row and test-time view.
      bad: bool [N], rows whose image could not be read (logits are zero).
    """

    logits: np.ndarray
    bad: np.ndarray

    def mean(self, prior: np.ndarray, views: int | None = None) -> np.ndarray:
        """Returns logits [N, C], averaged over views.

        Args:
          prior: float [C], class frequencies; an unreadable image gets their
            logarithm, so that its row is kept and says nothing more.
          views: as many of the first; None takes all.
        """
        log_prior = np.log(np.maximum(prior, 1e-6)).astype(np.float32)
        mean = self.logits[:, :views].mean(axis=1)
        return np.where(self.bad[:, None], log_prior, mean)


PredictStep = Callable[[dict, dict, jax.Array], jax.Array]


def make_predict_step(
    abstract_model: AbstractModel,
    mean: np.ndarray,
    std: np.ndarray,
    mesh: Mesh,
) -> PredictStep:
    """Returns the jitted step: (params, batch_stats, images) -> logits.

    images: uint8 [B, V, H, W, 3]; all views of all rows go through the model
    as one batch. logits: float32 [B, V, C].
    """

    @jax.jit
    @cpu_kernels.for_mesh(mesh)
    def predict_step(params, batch_stats, images, mean, std):
        model = abstract_model.merge(params, batch_stats)
        model.eval()
        rows, views = images.shape[:2]
        flat = images.reshape(rows * views, *images.shape[2:])
        logits = model(mixing.normalize(flat, mean, std))
        return logits.reshape(rows, views, -1)

    # As arguments: folds differ in them, and need not compile anew.
    return lambda params, batch_stats, images: predict_step(
        params, batch_stats, images, mean, std
    )


def predict(
    step: PredictStep,
    params: dict,
    batch_stats: dict,
    batches: Iterable[dict[str, np.ndarray]],
    rows: np.ndarray,
    mesh: Mesh,
) -> Prediction:
    """Predicts every row exactly once.

    Args:
      step: from `make_predict_step`.
      params: of the model.
      batch_stats: of the model.
      batches: from `input_pipeline.loader.eval_batches` over `rows`.
      rows: int [N], indices of the images, in the order of the result.
      mesh: to lay the batches out on.

    Raises:
      RuntimeError: a row came twice, never or out of order; a bug, never a
        lower score.
    """
    found = list(predictions(step, params, batch_stats, batches, rows, mesh))
    logits, bad = (
        np.concatenate([part[name] for part in found])
        for name in ("outputs", "bad")
    )
    # Batches come in the order of `rows`: see `predictions`.
    return Prediction(logits, bad)


def predictions(
    step: PredictStep,
    params: dict,
    batch_stats: dict,
    batches: Iterable[dict[str, np.ndarray]],
    rows: np.ndarray,
    mesh: Mesh,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields what `step` makes of each batch, every row exactly once.

    Args:
      step: (params, batch_stats, images) -> outputs [B, ...].
      params: of the model.
      batch_stats: of the model.
      batches: from `input_pipeline.loader.eval_batches` over `rows`.
      rows: int [N], indices of the images, in the order of the result.
      mesh: to lay the batches out on.

    Yields:
      Dicts of NumPy arrays without the rows that fill a batch up: `outputs`,
      `row`, `bad`, and `size` where the batches have it.

    Raises:
      RuntimeError: a row came twice, never or out of order; a bug, never a
        lower score.
    """
    seen, pending = 0, None

    def fetch(batch: dict[str, jax.Array]) -> dict[str, np.ndarray]:
        nonlocal seen
        found = _fetch(batch)
        count = len(found["row"])
        if not np.array_equal(found["row"], rows[seen : seen + count]):
            raise RuntimeError(
                f"rows {found['row']} were predicted where "
                f"{rows[seen : seen + count]} were to be"
            )
        seen += count
        return found

    for batch in batches:
        needed = {
            name: batch[name]
            for name in ("image", "row", "bad", "size")
            if name in batch
        }
        ahead = sharding.put_batch(needed, mesh)
        ahead["outputs"] = step(params, batch_stats, ahead.pop("image"))
        if pending is not None:  # Fetched one late: the device stays busy.
            yield fetch(pending)
        pending = ahead
    if pending is not None:
        yield fetch(pending)
    if seen != len(rows):
        raise RuntimeError(
            f"{len(rows)} rows were to be predicted, but {seen} were"
        )


def _fetch(batch: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """The rows of a batch, of all processes."""
    batch = sharding.to_host(batch)
    real = batch["row"] >= 0  # The rest fills the last batch up.
    return {name: values[real] for name, values in batch.items()}
