"""Losses of embeddings: what shows the same shall lie together.

Each takes an `embedding_batch.Batch`, and is pure and float32. Sums run over
the whole batch of all devices, so a loss does not depend on how the batch is
laid out; with nothing to learn from, such as no active triplet, it is 0, and
so are its gradients.

A label below 0 matches nothing: its row is a negative of all others. Rows of
weight 0 take no part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from training.tasks import mining
from training.tasks.embedding_batch import (
    Batch,
    Scalar,
    mean_of,
    pairwise_cosines,
    pairwise_distances,
    product,
)

# Largest cosine that acos and sqrt(1 - c^2) see: their slopes are infinite
# at 1.
_LARGEST_COSINE = 1 - 1e-7


# ---- Triplets ---------------------------------------------------------------


class Mining(NamedTuple):
    """How triplets are chosen.

    Attributes:
      miner: one of `MINERS`.
      margin: of semi-hard mining.
      positives: of n-hard mining, see `mining.n_hard`.
      negatives: of n-hard mining.
    """

    miner: str = "all"
    margin: float = 0.1
    positives: mining.Range = (1, 1)
    negatives: mining.Range = (1, 1)


MINERS = (
    "all",
    "hard",
    "semi_hard",
    "semi_hard_facenet",
    "n_hard",
    "hard_cluster",
)

# So many triplets are held in memory at a time, 32 MiB as float32.
_LARGEST_BLOCK = 2**23


class _Sides(NamedTuple):
    """Triplets, in arrays of shapes that broadcast to one.

    Attributes:
      near: float, how far each positive is: a distance, or minus a cosine.
      far: float, how far each negative is.
      valid: bool, which triplets exist.
    """

    near: jax.Array
    far: jax.Array
    valid: jax.Array


class _Sums(NamedTuple):
    """Of some triplets: float32, since counts may pass 2^31."""

    loss: jax.Array
    counted: jax.Array
    active: jax.Array
    valid: jax.Array


def triplet(
    batch: Batch, how: Mining, margin: float, active_only: bool = False
) -> tuple[Scalar, Scalar]:
    """relu(margin + d_ap - d_an), the mean over triplets (Schroff et al. 2015).

    Args:
      batch: of the step.
      how: triplets are chosen.
      margin: by which a negative shall be farther than a positive.
      active_only: whether the mean is over the triplets that are not 0, as in
        pytorch-metric-learning, and not over all, as in open-metric-learning.

    Returns:
      The loss, and the share of triplets that are not 0.
    """
    return _over_triplets(
        batch, how, pairwise_distances, _hinge(margin, active_only)
    )


def cosine_triplet(
    batch: Batch, how: Mining, margin: float, active_only: bool = False
) -> tuple[Scalar, Scalar]:
    """relu(margin + c_an - c_ap), as `triplet`; miners compare distances."""
    return _over_triplets(
        batch,
        how,
        lambda x, y: -pairwise_cosines(x, y),
        _hinge(margin, active_only),
    )


def soft_triplet(batch: Batch, how: Mining) -> tuple[Scalar, Scalar]:
    """softplus(d_ap - d_an), the mean over triplets (Hermans et al. 2017).

    Returns:
      The loss, and the share of triplets whose positive is the farther one.
    """

    def sums_of(sides: _Sides) -> _Sums:
        losses = jax.nn.softplus(sides.near - sides.far)
        wrong = sides.valid & (sides.near > sides.far)
        return _sums(losses, sides.valid, wrong, sides.valid)

    return _over_triplets(batch, how, pairwise_distances, sums_of)


def _hinge(margin: float, active_only: bool) -> Callable[[_Sides], _Sums]:
    def sums_of(sides: _Sides) -> _Sums:
        losses = jax.nn.relu(margin + sides.near - sides.far)
        active = sides.valid & (losses > 0)
        counted = active if active_only else sides.valid
        return _sums(losses, counted, active, sides.valid)

    return sums_of


def _sums(
    losses: jax.Array, counted: jax.Array, active: jax.Array, valid: jax.Array
) -> _Sums:
    counts = (
        each.sum().astype(jnp.float32) for each in (counted, active, valid)
    )
    return _Sums(jnp.where(counted, losses, 0.0).sum(), *counts)


def _over_triplets(
    batch: Batch,
    how: Mining,
    matrix_of: Callable[[jax.Array, jax.Array], jax.Array],
    sums_of: Callable[[_Sides], _Sums],
) -> tuple[Scalar, Scalar]:
    """A mean loss over triplets, and the share of active ones."""
    if how.miner == "hard_cluster":
        sums = sums_of(_cluster_sides(batch, matrix_of))
    else:
        rows = (
            matrix_of(batch.embeddings, batch.candidates),
            pairwise_distances(batch.embeddings, batch.candidates),
            batch.positive,
            batch.negative,
        )

        def of_anchors(matrix, distances, positive, negative) -> _Sums:
            found = _mine(how, distances, positive, negative)
            near = matrix[found.anchor, found.positive]
            far = matrix[found.anchor, found.negative]
            return sums_of(_Sides(near, far, found.valid))

        sums = _in_blocks(of_anchors, rows)
    return (
        sums.loss / jnp.maximum(sums.counted, 1),
        sums.active / jnp.maximum(sums.valid, 1),
    )


def _in_blocks(
    of_anchors: Callable[..., _Sums], rows: tuple[jax.Array, ...]
) -> _Sums:
    """The sums over all anchors: at once, or a block of them at a time.

    Triplets are as many as anchors times candidates squared. In blocks, the
    backward pass computes them anew.
    """
    anchors, candidates = rows[0].shape
    block = max(1, _LARGEST_BLOCK // candidates**2)
    if block >= anchors:
        return of_anchors(*rows)

    @jax.checkpoint
    def of_one(row):
        return of_anchors(*(each[None] for each in row))

    sums = jax.lax.map(of_one, rows, batch_size=block)
    return _Sums(*(each.sum() for each in sums))


def _mine(how: Mining, *pairs: jax.Array) -> mining.Triplets:
    if how.miner == "all":
        return mining.all_triplets(*pairs[1:])
    if how.miner == "hard":
        return mining.hard(*pairs)
    if how.miner == "semi_hard":
        return mining.semi_hard(*pairs, how.margin)
    if how.miner == "semi_hard_facenet":
        return mining.semi_hard_facenet(*pairs)
    return mining.n_hard(*pairs, how.positives, how.negatives)


def _cluster_sides(batch: Batch, matrix_of) -> _Sides:
    """Triplets between the means of classes, which have a gradient.

    A memory takes no part.
    """
    rows = len(batch.labels)
    itself = jnp.eye(rows, dtype=bool) & batch.counted
    member = batch.positive[:, :rows] | itself
    count = jnp.maximum(member.sum(axis=1, keepdims=True), 1)
    means = product(member / count, batch.embeddings.T)
    found = mining.hard_clusters(
        pairwise_distances(means, batch.embeddings),
        pairwise_distances(means, means),
        member,
    )
    return _Sides(
        matrix_of(means, batch.embeddings)[found.anchor, found.positive],
        matrix_of(means, means)[found.anchor, found.negative],
        found.valid,
    )


# ---- Pairs ------------------------------------------------------------------


def contrastive(
    batch: Batch, positive_margin: float = 0.0, negative_margin: float = 1.0
) -> tuple[Scalar, Scalar]:
    """relu(d_p - m_p) + relu(m_n - d_n), each a mean over its non-zero pairs.

    Hadsell et al. 2006 without their squares, as in pytorch-metric-learning.

    Returns:
      The loss, and the share of pairs that are not zero.
    """
    distances = pairwise_distances(batch.embeddings, batch.candidates)
    pulled = jax.nn.relu(distances - positive_margin)
    pushed = jax.nn.relu(negative_margin - distances)
    pulls = batch.positive & (pulled > 0)
    pushes = batch.negative & (pushed > 0)
    active = (pulls | pushes) * 1.0
    return (
        mean_of(pulled, pulls) + mean_of(pushed, pushes),
        mean_of(active, batch.positive | batch.negative),
    )


def supcon(batch: Batch, temperature: float = 0.1) -> Scalar:
    """Supervised contrastive loss, its L_out (Khosla et al. 2020).

    -1 / |P(i)| sum_p log[exp(c_ip / t) / sum_{a != i} exp(c_ia / t)], the mean
    over the anchors that have positives.
    """
    logits = pairwise_cosines(batch.embeddings, batch.candidates) / temperature
    everything = batch.positive | batch.negative
    log_p = logits - _logsumexp(logits, everything)[:, None]
    own = jnp.where(batch.positive, log_p, 0.0).sum(axis=1)
    count = batch.positive.sum(axis=1)
    return mean_of(-own / jnp.maximum(count, 1), count > 0)


def ntxent(batch: Batch, temperature: float = 0.07) -> Scalar:
    """Normalised temperature-scaled cross-entropy (Chen et al. 2020, SimCLR).

    -log[exp(c_p / t) / (exp(c_p / t) + sum_n exp(c_n / t))], the mean over
    positive pairs: with one positive per anchor, SimCLR's; with several, one
    is not held against another, as in pytorch-metric-learning.
    """
    logits = pairwise_cosines(batch.embeddings, batch.candidates) / temperature
    others = _logsumexp(logits, batch.negative)[:, None]
    return mean_of(jax.nn.softplus(others - logits), batch.positive)


def multi_similarity(
    batch: Batch,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float = 0.1,
) -> tuple[Scalar, Scalar]:
    """Multi-similarity loss on mined pairs (Wang et al. 2019).

    1/alpha log(1 + sum_p exp(-alpha (c - base))) + 1/beta log(1 + sum_n
    exp(beta (c - base))), the mean over all anchors.

    Args:
      batch: of the step.
      alpha: sharpness over positives.
      beta: sharpness over negatives.
      base: cosine that positives exceed and negatives do not.
      epsilon: of the miner, see `mining.multi_similarity`.

    Returns:
      The loss, and the share of pairs that the miner keeps.
    """
    cosines = pairwise_cosines(batch.embeddings, batch.candidates)
    masks = batch.positive, batch.negative
    pulls, pushes = mining.multi_similarity(cosines, *masks, epsilon)
    pulled = jax.nn.softplus(_logsumexp(-alpha * (cosines - base), pulls))
    pushed = jax.nn.softplus(_logsumexp(beta * (cosines - base), pushes))
    kept = (pulls | pushes) * 1.0
    return (
        mean_of(pulled / alpha + pushed / beta, batch.counted),
        mean_of(kept, batch.positive | batch.negative),
    )


def _logsumexp(values: jax.Array, counted: jax.Array) -> jax.Array:
    """log sum exp over the last axis of what counts; very small for nothing.

    Finite, so that gradients are.
    """
    return jax.nn.logsumexp(jnp.where(counted, values, -1e30), axis=-1)


# ---- Classes ----------------------------------------------------------------


def margin_softmax(
    batch: Batch, scale: float, margins: tuple[float, float, float]
) -> Scalar:
    """Cross-entropy of scaled cosines, the true class's made harder.

    s (cos(m1 theta + m2) - m3) takes the place of s cos(theta) for the angle
    between an embedding and the weights of its class (Deng et al. 2019,
    arXiv:1801.07698, eq. 4). (1, m, 0) is ArcFace, (1, 0, m) CosFace. Rows
    with a label below 0 take no part.

    Args:
      batch: of the step, with class weights.
      scale: s.
      margins: m1, m2, m3.
    """
    cosines = pairwise_cosines(batch.embeddings, batch.class_weights)
    counted = batch.counted & (batch.labels >= 0)
    labels = jnp.where(counted, batch.labels, 0)[:, None]
    own = jnp.take_along_axis(cosines, labels, axis=1)
    true = jnp.arange(cosines.shape[1]) == labels
    logits = scale * jnp.where(true, with_margins(own, *margins), cosines)
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels, axis=1)
    return mean_of(losses[:, 0], counted)


def with_margins(
    cosines: Float[Array, "*shape"], m1: float, m2: float, m3: float
) -> Float[Array, "*shape"]:
    """Returns cos(m1 theta + m2) - m3, falling in theta.

    Where m1 = 1 and theta + m2 exceeds pi, cos(theta) - m2 sin(m2) - m3 goes
    on falling, as in open-metric-learning and pytorch-metric-learning. With
    another m1 the angle stops at pi.
    """
    if m1 == 1 and m2 == 0:
        return cosines - m3
    # Beyond it is rounding, and the gradient is lost to the clip.
    inside = jnp.clip(cosines, -_LARGEST_COSINE, _LARGEST_COSINE)
    if m1 == 1:
        sines = jnp.sqrt(1 - inside * inside)
        shifted = inside * math.cos(m2) - sines * math.sin(m2)
        beyond = cosines - m2 * math.sin(m2)
        return jnp.where(cosines > -math.cos(m2), shifted, beyond) - m3
    return jnp.cos(jnp.minimum(m1 * jnp.arccos(inside) + m2, math.pi)) - m3
