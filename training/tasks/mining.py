"""Which triplets or pairs of a batch a metric loss looks at.

Anchors are the rows of the batch, A of them. Candidates are the rows of the
batch, followed by a memory's where there is one, N in all. `positive` and
`negative` are bool [A, N]; an anchor is neither for itself. All shapes are
static: what is chosen is a mask, or indices with a mask of those that count.
Choices have no gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Pairs = Bool[Array, "A N"]
Distances = Float[Array, "A N"]

# What a range of n-hard mining may be: from and to, both included, from 1.
Range = tuple[int, int]


class Triplets(NamedTuple):
    """Triplets as indices of three shapes that broadcast to one.

    Attributes:
      anchor: int, rows of the distances.
      positive: int, columns of the distances.
      negative: int, columns of the distances.
      valid: bool, of the common shape: which of them exist.
    """

    anchor: jax.Array
    positive: jax.Array
    negative: jax.Array
    valid: jax.Array


def pair_masks(
    labels: Int[Array, " A"],
    counted: Bool[Array, " A"],
    memory_labels: Int[Array, " M"] | None = None,
    memory_filled: Bool[Array, " M"] | None = None,
) -> tuple[Pairs, Pairs]:
    """Returns which candidates are positives and negatives of which anchor.

    A label below 0 matches nothing, not even its like: its row is a negative
    of all others.

    Args:
      labels: of the batch.
      counted: rows that take part.
      memory_labels: of the memory.
      memory_filled: which places of it hold something.
    """
    candidates, there = labels, counted
    itself = jnp.eye(len(labels), dtype=bool)
    if memory_labels is not None:
        candidates = jnp.concatenate([labels, memory_labels])
        there = jnp.concatenate([counted, memory_filled])
        itself = jnp.pad(itself, ((0, 0), (0, len(memory_labels))))
    both = counted[:, None] & there & ~itself
    same = (labels[:, None] == candidates) & (labels >= 0)[:, None]
    return same & both, ~same & both


def all_triplets(positive: Pairs, negative: Pairs) -> Triplets:
    """Returns every triplet of the batch."""
    anchors, candidates = positive.shape
    return Triplets(
        jnp.arange(anchors)[:, None, None],
        jnp.arange(candidates)[None, :, None],
        jnp.arange(candidates)[None, None, :],
        positive[:, :, None] & negative[:, None, :],
    )


def semi_hard(
    distances: Distances, positive: Pairs, negative: Pairs, margin: float
) -> Triplets:
    """Returns the triplets with 0 < d_an - d_ap <= margin.

    As pytorch-metric-learning has it. The negative is farther than the
    positive, but not by the margin.
    """
    every = all_triplets(positive, negative)
    gap = distances[:, None, :] - distances[:, :, None]
    return every._replace(valid=every.valid & (gap > 0) & (gap <= margin))


def semi_hard_facenet(
    distances: Distances, positive: Pairs, negative: Pairs
) -> Triplets:
    """Returns for each positive the nearest negative that is farther than it.

    The farthest negative where none is farther (Schroff et al. 2015, FaceNet,
    as TensorFlow Addons implements it).
    """
    anchors, candidates = positive.shape
    # [A, P, N]: negatives farther than the positive.
    farther = negative[:, None, :] & (
        distances[:, None, :] > distances[:, :, None]
    )
    nearest = jnp.argmin(
        jnp.where(farther, distances[:, None, :], jnp.inf), axis=2
    )
    farthest = jnp.argmax(jnp.where(negative, distances, -jnp.inf), axis=1)
    return Triplets(
        jnp.arange(anchors)[:, None],
        jnp.arange(candidates)[None, :],
        jnp.where(farther.any(axis=2), nearest, farthest[:, None]),
        positive & negative.any(axis=1, keepdims=True),
    )


def n_hard(
    distances: Distances,
    positive: Pairs,
    negative: Pairs,
    positives: Range = (1, 1),
    negatives: Range = (1, 1),
) -> Triplets:
    """Returns triplets of the farthest positives and nearest negatives.

    As open-metric-learning's. A range such as (2, 5) leaves out the very
    hardest, which may be labelled wrongly. An anchor with fewer positives or
    negatives than a range asks for has fewer triplets.

    Args:
      distances: from anchors to candidates.
      positive: which candidates are positives.
      negative: which candidates are negatives.
      positives: range of the farthest positives, from 1, both ends included.
      negatives: range of the nearest negatives, the same way.
    """
    anchors = jnp.arange(len(distances))[:, None, None]
    far, is_positive = _hardest(distances, positive, positives)
    near, is_negative = _hardest(-distances, negative, negatives)
    return Triplets(
        anchors,
        far[:, :, None],
        near[:, None, :],
        is_positive[:, :, None] & is_negative[:, None, :],
    )


def hard(distances: Distances, positive: Pairs, negative: Pairs) -> Triplets:
    """Returns each anchor's farthest positive with its nearest negative.

    Batch-hard of Hermans et al. 2017 (arXiv:1703.07737).
    """
    return n_hard(distances, positive, negative)


def multi_similarity(
    cosines: Float[Array, "A N"],
    positive: Pairs,
    negative: Pairs,
    epsilon: float,
) -> tuple[Pairs, Pairs]:
    """Returns the pairs that the multi-similarity miner keeps.

    A positive must be less alike than the most alike negative plus epsilon,
    a negative more alike than the least alike positive less epsilon (Wang et
    al. 2019, arXiv:1904.06627).
    """
    nearest = jnp.where(negative, cosines, -jnp.inf).max(axis=1, keepdims=True)
    farthest = jnp.where(positive, cosines, jnp.inf).min(axis=1, keepdims=True)
    return (
        positive & (cosines - epsilon < nearest),
        negative & (cosines + epsilon > farthest),
    )


def hard_clusters(
    distances: Distances,
    between: Float[Array, "A A"],
    member: Bool[Array, "A A"],
) -> Triplets:
    """Returns one triplet per class: mean, farthest member, nearest mean.

    As open-metric-learning's, but classes need not be of one size.

    Args:
      distances: from the mean of each row's class to each row.
      between: from the mean of each row's class to that of each other's.
      member: which rows are of a row's class, itself included; no others for
        rows without a class, and none for those that do not count.

    Returns:
      Anchors are classes, by their first row; negatives are columns of
      `between`.
    """
    rows = jnp.arange(len(member))
    first = jnp.argmax(member, axis=1)
    # A class of one has its mean on its member: nothing to pull.
    leads = (first == rows) & (member.sum(axis=1) > 1)
    other = (first == rows) & member.any(axis=1)
    other = other[None, :] & ~member
    return Triplets(
        rows,
        jnp.argmax(jnp.where(member, distances, -jnp.inf), axis=1),
        jnp.argmin(jnp.where(other, between, jnp.inf), axis=1),
        leads & other.any(axis=1),
    )


def _hardest(
    hardness: Distances, allowed: Pairs, wanted: Range
) -> tuple[Int[Array, "A K"], Bool[Array, "A K"]]:
    """Columns of the allowed pairs of highest hardness, and which exist."""
    start, stop = wanted
    stop = min(stop, hardness.shape[1])
    values, columns = jax.lax.top_k(
        jnp.where(allowed, hardness, -jnp.inf), stop
    )
    return columns[:, start - 1 :], jnp.isfinite(values[:, start - 1 :])
