"""Losses of a segmentation: a class per pixel, ignored pixels left out.

Each maps logits float [B, H, W, C], labels int [B, H, W] in [0, C), and
`counted` float [B, H, W], 1 for the pixels that count and 0 for the others,
to one number for the batch. Sums run over the whole batch of all devices, so
a loss does not depend on how the batch is laid out. Without a counted pixel a
loss is 0, and so are its gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from core.errors import UserError
from metrics import segmentation

Logits = Float[Array, "B H W C"]
Labels = Int[Array, "B H W"]
Counted = Float[Array, "B H W"]
Weights = Float[Array | np.ndarray, " C"]


def cross_entropy(
    logits: Logits,
    labels: Labels,
    counted: Counted,
    weights: Weights,
    smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Weighted cross-entropy, PyTorch's mean: sum(w nll) / sum(w).

    Only ratios of weights matter. With label smoothing e (Szegedy et al.
    2016): (1 - e) times that, plus e / C times the sum over pixels and
    classes of w_c (-log p_c), over the same sum of weights.

    Args:
      logits: of the classes.
      labels: true classes.
      counted: which pixels count.
      weights: float [C], of the classes.
      smoothing: e, of the labels.
    """
    log_p = jax.nn.log_softmax(logits)
    own = jnp.asarray(weights)[labels] * counted  # [B, H, W]
    total = _at_least_tiny(own.sum())
    loss = -(own * _pick(log_p, labels)).sum() / total
    if smoothing:
        spread = -(log_p * jnp.asarray(weights)).sum(-1) * counted
        spread = spread.sum() / total / logits.shape[-1]
        loss = (1 - smoothing) * loss + smoothing * spread
    return loss


def focal(
    logits: Logits,
    labels: Labels,
    counted: Counted,
    weights: Weights,
    gamma: float,
) -> Float[Array, ""]:
    """Focal loss (Lin et al. 2017) over a softmax: (1 - p_y)^gamma * nll.

    Args:
      logits: of the classes.
      labels: true classes.
      counted: which pixels count.
      weights: float [C], the paper's alpha.
      gamma: 0 is the cross-entropy.
    """
    log_p = _pick(jax.nn.log_softmax(logits), labels)
    own = jnp.asarray(weights)[labels] * counted
    # log(1 - p) from logits; p itself may round to 1, whose power has no
    # gradient.
    others = jnp.log(-jnp.expm1(jnp.minimum(log_p, -1e-7)))
    total = _at_least_tiny(own.sum())
    return -(own * jnp.exp(gamma * others) * log_p).sum() / total


def dice(logits: Logits, labels: Labels, counted: Counted) -> Float[Array, ""]:
    """One minus the soft Dice, mean over the classes in the labels.

    2 sum(p y) / (sum(p) + sum(y)) per class, over the pixels of the batch
    (Milletari et al. 2016, without their squares).
    """
    p = jax.nn.softmax(logits) * counted[..., None]
    y = jax.nn.one_hot(labels, logits.shape[-1]) * counted[..., None]
    over = (0, 1, 2)
    hits, sizes = (p * y).sum(over), p.sum(over) + y.sum(over)
    present = (y.sum(over) > 0).astype(jnp.float32)
    losses = 1 - 2 * hits / _at_least_tiny(sizes)
    return (losses * present).sum() / _at_least_tiny(present.sum())


def lovasz(
    logits: Logits, labels: Labels, counted: Counted
) -> Float[Array, ""]:
    """Lovasz-softmax (Berman et al. 2018, arXiv:1705.08790).

    Per class in the labels: the errors |y - p| of the batch's pixels, sorted
    descending, dotted with the gradient of 1 - intersection / union along
    that order; the mean over these classes.
    """
    classes = logits.shape[-1]
    p = jax.nn.softmax(logits).reshape(-1, classes)
    y = jax.nn.one_hot(labels, classes).reshape(-1, classes)
    counts = counted.reshape(-1)

    def of_class(p: jax.Array, y: jax.Array) -> jax.Array:
        # Pixels that do not count: no error, behind all others.
        errors = jnp.where(counts > 0, jnp.abs(y - p), -1.0)
        order = jax.lax.stop_gradient(jnp.argsort(-errors))
        truth, count = (y * counts)[order], counts[order]
        union_rest = truth.sum() + jnp.cumsum((1 - truth) * count)
        jaccard = 1 - (truth.sum() - jnp.cumsum(truth)) / _at_least_tiny(
            union_rest
        )
        steps = jnp.diff(jaccard, prepend=0.0)
        return (jnp.maximum(errors[order], 0) * steps).sum()

    losses = jax.vmap(of_class, in_axes=1)(p, y)  # [C]
    present = ((y * counts[:, None]).sum(0) > 0).astype(jnp.float32)
    return (losses * present).sum() / _at_least_tiny(present.sum())


# (logits, labels, counted, weights, stage) -> loss
TERMS: dict[str, Callable[..., jax.Array]] = {
    "cross_entropy": lambda logits, labels, counted, weights, stage: (
        cross_entropy(logits, labels, counted, weights, stage.label_smoothing)
    ),
    "focal": lambda logits, labels, counted, weights, stage: focal(
        logits, labels, counted, weights, stage.focal_gamma
    ),
    "dice": lambda logits, labels, counted, weights, stage: dice(
        logits, labels, counted
    ),
    "lovasz": lambda logits, labels, counted, weights, stage: lovasz(
        logits, labels, counted
    ),
}


def terms_of(loss: str) -> list[str]:
    """Returns the names in a sum such as 'cross_entropy+dice'."""
    return [name.strip() for name in (loss or "cross_entropy").split("+")]


def make_loss(
    stage: ConfigDict,
) -> Callable[[Logits, Labels, Counted, Weights], Float[Array, ""]]:
    """Returns the sum of the losses that a stage names.

    Args:
      stage: a `configs.common.stage`; its `loss` is names of `TERMS` with
        plus signs between them.
    """
    terms = [TERMS[name] for name in terms_of(stage.loss)]

    def loss(logits, labels, counted, weights):
        return sum(
            term(logits, labels, counted, weights, stage) for term in terms
        )

    return loss


def class_weights(
    text: str,
    prior: Float[np.ndarray, " C"],
    prior_where_present: Float[np.ndarray, " C"],
) -> Float[np.ndarray, " C"]:
    """Returns the weights that `segment.class_weights` asks for, float32 [C].

    Raises:
      UserError: numbers are given, but not one for each class.
    """
    if not text:
        return np.ones(len(prior), np.float32)
    if text in segmentation.WEIGHTINGS:
        weights = segmentation.frequency_weights(
            prior, prior_where_present, text
        )
        return weights.astype(np.float32)
    weights = np.array([float(part) for part in text.split(",")], np.float32)
    if len(weights) != len(prior):
        raise UserError(
            f"segment.class_weights has {len(weights)} numbers and the data "
            f"{len(prior)} classes; give one for each class"
        )
    return weights


def weights_problem(text: str) -> str:
    """Returns what is wrong with `segment.class_weights`, or ''."""
    if text in ("", *segmentation.WEIGHTINGS):
        return ""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if numbers and all(0 <= n < np.inf for n in numbers) and any(numbers):
        return ""
    return (
        f"{text!r}: choose one of {', '.join(segmentation.WEIGHTINGS)}, or "
        "give a number for each class, with commas between them"
    )


def _pick(values: jax.Array, labels: jax.Array) -> jax.Array:
    """The value of each pixel's own class."""
    return jnp.take_along_axis(values, labels[..., None], -1)[..., 0]


def _at_least_tiny(value: jax.Array) -> jax.Array:
    return jnp.maximum(value, 1e-12)
