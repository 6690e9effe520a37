"""A batch of embeddings, beside what it is compared to: itself, a memory.

Distances are L2, cosines of unit vectors; both float32, whatever the model
computes in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_models.embedding import unit
from training.tasks import mining

Embeddings = Float[Array, "B D"]
Labels = Int[Array, " B"]
Weight = Float[Array, " B"]
ClassWeights = Float[Array, "C D"]
Scalar = Float[Array, ""]
Diagnostics = dict[str, Scalar]


class Memory(NamedTuple):
    """The embeddings of past batches: a ring (Wang et al. 2020, XBM).

    Attributes:
      embeddings: float32 [M, D].
      labels: int32 [M].
      filled: bool [M], which places hold something.
      position: int32 [], where the next batch goes.
    """

    embeddings: jax.Array
    labels: jax.Array
    filled: jax.Array
    position: jax.Array


def empty_memory(size: int, width: int) -> Memory:
    """Returns a memory without embeddings.

    Args:
      size: M, places.
      width: D, of the embeddings.
    """
    return Memory(
        jnp.zeros((size, width), jnp.float32),
        jnp.zeros(size, jnp.int32),
        jnp.zeros(size, bool),
        jnp.zeros((), jnp.int32),
    )


def remember(
    memory: Memory, embeddings: Embeddings, labels: Labels, weight: Weight
) -> Memory:
    """Returns the memory after a batch, of at most as many rows as places.

    The batch takes the places of the oldest. Rows of weight 0 leave theirs
    empty, so that shapes do not depend on them.
    """
    size, rows = len(memory.labels), len(labels)
    if rows > size:
        raise ValueError(f"a batch of {rows} and a memory of {size}")
    places = (memory.position + jnp.arange(rows)) % size
    values = jax.lax.stop_gradient(embeddings.astype(jnp.float32))
    return Memory(
        memory.embeddings.at[places].set(values),
        memory.labels.at[places].set(labels.astype(jnp.int32)),
        memory.filled.at[places].set(weight > 0),
        (memory.position + rows) % size,
    )


# ---- Distances and means ----------------------------------------------------


def pairwise_cosines(
    x: Float[Array, "N D"], y: Float[Array, "M D"]
) -> Float[Array, "N M"]:
    """Returns the cosines between rows; 0 with a row of zeros."""
    return product(unit(x)[0], unit(y)[0])


def pairwise_distances(
    x: Float[Array, "N D"], y: Float[Array, "M D"]
) -> Float[Array, "N M"]:
    """Returns the L2 distances between rows.

    A squared distance below what float32 resolves beside the rows' own
    lengths is 0, and so is its gradient, which of sqrt would be infinite:
    rows of one picture are at distance 0 and finite.
    """
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    lengths = (x * x).sum(-1)[:, None] + (y * y).sum(-1)
    square = lengths - 2 * product(x, y)
    apart = square > 1e-6 * lengths
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0)


def product(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns x @ y.T in full float32.

    An accelerator's default, passes in bfloat16, leaves two digits.
    """
    return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)


def mean_of(values: jax.Array, counted: jax.Array) -> jax.Array:
    """The mean over what counts; 0 where nothing does."""
    values = jnp.where(counted, values, 0.0)
    return values.sum() / jnp.maximum(counted.sum(), 1)


# ---- A batch and its candidates ---------------------------------------------


@dataclass(frozen=True)
class Batch:
    """A batch with the candidates that its rows are compared to.

    Attributes:
      embeddings: [B, D].
      labels: [B].
      counted: [B], rows that take part.
      candidates: [N, D], of the batch, then of the memory, without gradient.
      positive: [B, N], see `mining.pair_masks`.
      negative: [B, N].
      class_weights: [C, D], or None.
    """

    embeddings: Embeddings
    labels: Labels
    counted: Bool[Array, " B"]
    candidates: Float[Array, "N D"]
    positive: mining.Pairs
    negative: mining.Pairs
    class_weights: ClassWeights | None


def make_batch(
    embeddings: Embeddings,
    labels: Labels,
    weight: Weight,
    class_weights: ClassWeights | None = None,
    memory: Memory | None = None,
) -> Batch:
    """Returns a batch beside a memory; see `Batch`."""
    embeddings = embeddings.astype(jnp.float32)
    candidates, past = embeddings, ()
    if memory is not None:
        kept = jax.lax.stop_gradient(memory.embeddings)
        candidates = jnp.concatenate([embeddings, kept])
        past = memory.labels, memory.filled
    masks = mining.pair_masks(labels, weight > 0, *past)
    return Batch(
        embeddings, labels, weight > 0, candidates, *masks, class_weights
    )


def describe(batch: Batch) -> Diagnostics:
    """Returns distances inside a batch; see `make_metric_loss`."""
    rows = len(batch.labels)
    distances = pairwise_distances(batch.embeddings, batch.embeddings)
    return {
        "positive_distance": mean_of(distances, batch.positive[:, :rows]),
        "negative_distance": mean_of(distances, batch.negative[:, :rows]),
    }
