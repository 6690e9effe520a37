"""Counts what a classifier gets right, on the devices."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from input_pipeline.transforms import mixing
from metrics import classification


class ClassificationEvaluator:
    """Counts the confusion matrix, and sums the log-loss.

    Args:
      num_classes: C.
    """

    def __init__(self, num_classes: int):
        self._num_classes = num_classes

    def init(self) -> dict[str, np.ndarray]:
        """Returns int32 [C, C] of zeros, and the loss and count of no rows."""
        classes = self._num_classes
        return {
            "confusion": np.zeros((classes, classes), np.int32),
            "loss": np.zeros((), np.float32),
            "rows": np.zeros((), np.float32),
        }

    def update(
        self,
        totals: dict[str, jax.Array],
        model: nnx.Module,
        batch: Mapping[str, jax.Array],
        constants: dict[str, jax.Array],
    ) -> dict[str, jax.Array]:
        """Adds the first views of a batch; see `Evaluator`."""
        images = mixing.normalize(
            batch["image"][:, 0], constants["mean"], constants["std"]
        )
        logits = model(images)  # [B, C]
        # An unreadable image is answered with the class prior, as in export.
        prior = jnp.log(jnp.maximum(constants["class_prior"], 1e-6))
        logits = jnp.where(batch["bad"][:, None], prior, logits)
        weight = batch["weight"]
        # Filling has label -1 and weight 0.
        label = jnp.maximum(batch["label"], 0)
        rows = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        confusion = totals["confusion"].at[label, logits.argmax(-1)]
        return {
            "confusion": confusion.add(weight.astype(jnp.int32)),
            "loss": totals["loss"] + (rows * weight).sum(),
            "rows": totals["rows"] + weight.sum(),
        }

    def compute(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        """Returns macro-F1, accuracy and mean log-loss."""
        confusion = totals["confusion"]
        return {
            "val_macro_f1": float(
                classification.macro_f1_from_confusion(confusion)
            ),
            "val_accuracy": float(
                classification.accuracy_from_confusion(confusion)
            ),
            "val_loss": float(totals["loss"] / max(totals["rows"], 1.0)),
        }
