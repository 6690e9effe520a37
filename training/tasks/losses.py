"""Losses of a classifier on soft targets.

`make_loss` puts together what a stage asks for. Each of the others maps
logits and targets, float [B, C], to one loss per row, [B]. Targets are
distributions: one-hot labels that MixUp, CutMix and label smoothing may have
spread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from training.loop.state import AbstractModel


def make_loss(stage: ConfigDict, teacher: AbstractModel | None = None):
    """Returns the function of a `Loss`: a stage's loss on mixed images.

    Label smoothing (Szegedy et al. 2016) is applied here and nowhere else.
    Rows with weight 0 count for nothing; the mean is over the others.

    Args:
      stage: a `configs.common.stage`.
      teacher: of the distillation, its weights in `constants["teacher"]` and
        its `mean` and `std` in `constants["teacher_channels"]`. It sees the
        very images that the student sees, erased and mixed, normalised as it
        knows them (Beyer et al. 2022).
    """

    def loss(model, batch, constants) -> jax.Array:
        weights = constants["class_weights"]
        images, counts = batch["image"], batch["weight"]
        targets = optax.smooth_labels(batch["target"], stage.label_smoothing)
        logits = answers = model(images)
        if stage.logit_adjustment:
            logits = adjust(
                logits, constants["log_prior"], stage.logit_adjustment
            )
        if stage.loss == "focal":
            rows = focal(logits, targets, weights, stage.focal_gamma)
        else:
            rows = cross_entropy(logits, targets, weights)
        if teacher is not None:
            master = teacher.merge(*constants["teacher"])
            master.eval()
            rows = (1 - stage.distill_alpha) * rows
            rows += stage.distill_alpha * distillation(
                answers,
                jax.lax.stop_gradient(master(as_normalized(images, constants))),
                stage.distill_temperature,
            )
        return (rows * counts).sum() / jnp.maximum(counts.sum(), 1.0)

    return loss


def as_normalized(
    images: Float[Array, "B H W 3"], constants: Mapping[str, Any]
) -> Float[Array, "B H W 3"]:
    """Returns the student's images as its teacher normalises them.

    Args:
      images: normalised with the `mean` and `std` of `constants`.
      constants: of the loss, with `teacher_channels`.
    """
    theirs = constants["teacher_channels"]
    scale = constants["std"] / theirs["std"]
    offset = (constants["mean"] - theirs["mean"]) / theirs["std"]
    return images * scale + offset


def describe_loss(stage: ConfigDict) -> Iterator[str]:
    """Yields what a plan says of a stage's loss."""
    if stage.loss:
        yield f"{stage.loss} loss"
    if stage.class_weight:
        yield f"class weights to the power {stage.class_weight:g}"
    if stage.effective_number:
        yield f"class weights by effective number, {stage.effective_number:g}"
    if stage.logit_adjustment:
        yield f"logits adjusted by {stage.logit_adjustment:g}"
    if stage.distill_from:
        yield f"distilled from {stage.distill_from}"


def loss_constants(
    stage: ConfigDict,
    mean: np.ndarray,
    std: np.ndarray,
    prior: np.ndarray,
    rows: int,
) -> dict[str, np.ndarray]:
    """Returns what `make_loss` reads besides the batch.

    Args:
      stage: a `configs.common.stage`.
      mean: float [3], channel means over 0..1 values.
      std: float [3], channel standard deviations.
      prior: float [C], class frequencies among the training rows.
      rows: how many these are.
    """
    weights = class_weights(prior, stage.class_weight)
    if stage.effective_number:
        weights = effective_number_weights(prior, rows, stage.effective_number)
    return {
        "mean": mean,
        "std": std,
        "log_prior": np.log(np.maximum(prior, 1e-6)).astype(np.float32),
        "class_weights": weights,
    }


def cross_entropy(
    logits: Float[Array, "B C"],
    targets: Float[Array, "B C"],
    weights: Float[Array | np.ndarray, " C"],
) -> Float[Array, " B"]:
    """Softmax cross-entropy, class c counted `weights[c]` times.

    Args:
      logits: float [B, C].
      targets: float [B, C].
      weights: float [C]; ones for the plain loss.
    """
    return -(weights * targets * jax.nn.log_softmax(logits)).sum(-1)


def focal(
    logits: Float[Array, "B C"],
    targets: Float[Array, "B C"],
    weights: Float[Array | np.ndarray, " C"],
    gamma: float,
) -> Float[Array, " B"]:
    """Focal loss (Lin et al. 2017) over a softmax: each class's term of the
    cross-entropy times (1 - p)^gamma, so that easy rows count less.

    Args:
      logits: float [B, C].
      targets: float [B, C].
      weights: float [C], the paper's alpha.
      gamma: 0 is the cross-entropy.
    """
    log_p = jax.nn.log_softmax(logits)
    # log(1 - p) from logits; p itself may round to 1, whose power has no
    # gradient.
    others = jnp.log(-jnp.expm1(jnp.minimum(log_p, -1e-7)))
    return -(weights * targets * jnp.exp(gamma * others) * log_p).sum(-1)


def distillation(
    logits: Float[Array, "B C"],
    teacher: Float[Array, "B C"],
    temperature: float,
) -> Float[Array, " B"]:
    """T^2 KL(teacher || student), both softened by T (Hinton et al. 2015).

    The factor keeps the gradient's size when T changes.

    Args:
      logits: float [B, C], the student's.
      teacher: float [B, C], the teacher's logits for the same images.
      temperature: T.
    """
    log_q = jax.nn.log_softmax(teacher / temperature)
    log_p = jax.nn.log_softmax(logits / temperature)
    return temperature**2 * (jnp.exp(log_q) * (log_q - log_p)).sum(-1)


def adjust(
    logits: Float[Array, "B C"],
    log_prior: Float[Array | np.ndarray, " C"],
    strength: float,
) -> Float[Array, "B C"]:
    """Logits plus `strength` times the classes' log frequencies.

    Trained so and used without, a model answers as if classes were equally
    frequent: logit adjustment (Menon et al. 2021), at 1 the balanced softmax
    (Ren et al. 2020).

    Args:
      logits: float [B, C].
      log_prior: float [C].
      strength: tau of the paper.
    """
    return logits + strength * log_prior


def class_weights(
    prior: Float[np.ndarray, " C"], power: float
) -> Float[np.ndarray, " C"]:
    """Returns frequency ** -power, scaled so that the mean row weighs 1.

    Args:
      prior: float [C], class frequencies among the training rows, sum 1. A
        class without rows weighs 0.
      power: 0 weighs all alike, 1 inversely to frequency.

    Returns:
      float32 [C].
    """
    weights = np.zeros_like(prior, dtype=np.float64)
    present = prior > 0
    weights[present] = prior[present] ** -power
    return _scaled(weights, prior)


def effective_number_weights(
    prior: Float[np.ndarray, " C"], rows: int, beta: float
) -> Float[np.ndarray, " C"]:
    """Returns (1 - beta) / (1 - beta^n) for a class of n rows, scaled so.

    Cui et al., "Class-Balanced Loss Based on Effective Number of Samples",
    CVPR 2019: near beta 0 all classes weigh alike, near 1 inversely to n.

    Args:
      prior: as `class_weights`.
      rows: number of training rows.
      beta: in (0, 1).

    Returns:
      float32 [C].
    """
    weights = np.zeros_like(prior, dtype=np.float64)
    present = prior > 0
    # By expm1, as beta^n may round to 1.
    numbers = -np.expm1(rows * prior[present] * np.log(beta))
    weights[present] = 1 / numbers
    return _scaled(weights, prior)


def _scaled(weights: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Scaled so that the mean row weighs 1, float32."""
    return (weights / (weights * prior).sum()).astype(np.float32)
