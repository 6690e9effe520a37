"""Scores of a verification: do two images show the same thing?

A pair has a score, larger = more alike, and is positive or negative. What is
asked is how well scores tell the two apart, whatever the threshold. False
match rate (FMR, also FAR or FPR): share of negatives that are accepted. False
non-match rate (FNMR, also FRR or FNR): share of positives that are rejected.
A pair is accepted where its score is at least the threshold.

Equal scores always move together: no order among them is assumed. Without
positives, without negatives, or with a score that is NaN, rates are NaN.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Integer, Real, Shaped

# What a pair may be; `kind` of a pair is an index. Both pictures are real and
# show one identity; they show two identities; they pass for one identity, but
# one or both are forged.
KINDS = ("same", "other", "one_forged", "both_forged")
POSITIVE = KINDS.index("same")

Scores = Real[np.ndarray, " P"]
Positive = Bool[np.ndarray, " P"]


class Roc(NamedTuple):
    """Error rates from the strictest to the most lenient threshold.

    The first threshold is infinite and accepts nothing; the others are the
    distinct scores, descending.

    Attributes:
      thresholds: float64 [T].
      fmr: float64 [T], share of negatives accepted, ascending from 0 to 1.
      fnmr: float64 [T], share of positives rejected, descending from 1 to 0.
    """

    thresholds: np.ndarray
    fmr: np.ndarray
    fnmr: np.ndarray


def roc(scores: Scores, positive: Positive) -> Roc:
    """Returns the error rates at every threshold that changes them.

    Args:
      scores: of the pairs, larger = more alike.
      positive: which pairs are positive.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order].astype(np.float64), positive[order]
    last = np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)]
    accepted = np.stack([~hits, hits]).cumsum(axis=1)[:, last]
    accepted = np.pad(accepted, ((0, 0), (1, 0)))
    totals = np.array([(~positive).sum(), positive.sum()], np.float64)
    if np.isnan(ranked).any():
        totals[:] = np.nan
    with np.errstate(invalid="ignore"):
        fmr, tmr = accepted / totals[:, None]
    return Roc(np.append(np.inf, ranked[last]), fmr, 1 - tmr)


def equal_error(scores: Scores, positive: Positive) -> tuple[float, float]:
    """Returns the equal error rate, and a threshold near it.

    Between the two neighbouring thresholds where FNMR - FMR changes its sign,
    both rates are taken to be straight lines; the result is where they cross.
    Constant scores give 0.5.

    Returns:
      (rate, the highest threshold at which FNMR is at most FMR).
    """
    curve = roc(scores, positive)
    gap = curve.fnmr - curve.fmr  # From 1 to -1.
    if np.isnan(gap).any():
        return np.nan, np.nan
    after = int(np.argmax(gap <= 0))
    before = after - 1
    share = gap[before] / (gap[before] - gap[after])
    step = curve.fmr[after] - curve.fmr[before]
    rate = curve.fmr[before] + share * step
    return float(rate), float(curve.thresholds[after])


def equal_error_rate(scores: Scores, positive: Positive) -> float:
    """Returns the rate at which FMR = FNMR; see `equal_error`."""
    return equal_error(scores, positive)[0]


def auc(scores: Scores, positive: Positive) -> float:
    """Returns the area under the ROC curve.

    The probability that a positive pair scores above a negative one, ties
    counted half.
    """
    if not len(scores):
        return np.nan
    curve = roc(scores, positive)
    return float(np.trapezoid(1 - curve.fnmr, curve.fmr))


def fnmr_at_fmr(scores: Scores, positive: Positive, fmr: float = 0.1) -> float:
    """Returns the share of positives rejected where `fmr` of negatives pass.

    As open-metric-learning has it: the threshold is a quantile of the
    negatives' scores, interpolated, and what equals it is rejected.

    Args:
      scores: of the pairs.
      positive: which pairs are positive.
      fmr: in [0, 1].
    """
    # As distances, since a quantile of -x may round otherwise than one of x;
    # finite, since between two infinities there is no number.
    distances = np.clip(-scores.astype(np.float64), -1e300, 1e300)
    if positive.all() or not positive.any() or np.isnan(distances).any():
        return np.nan
    threshold = np.quantile(distances[~positive], fmr)
    return float((distances[positive] >= threshold).mean())


def tar_at_far(scores: Scores, positive: Positive, far: float = 1e-3) -> float:
    """Returns the share of positives accepted at a false accept rate.

    One minus `fnmr_at_fmr`.
    """
    return 1 - fnmr_at_fmr(scores, positive, far)


def summary(scores: Scores, positive: Positive) -> dict[str, float]:
    """Returns the scores of a set of pairs, by name; `_10` and `_1` are %."""
    return {
        "eer": equal_error_rate(scores, positive),
        "auc": auc(scores, positive),
        "fnmr_at_fmr_10": fnmr_at_fmr(scores, positive, 0.1),
        "tar_at_far_1": tar_at_far(scores, positive, 0.01),
    }


def pairs_of_kind(
    kind: Integer[np.ndarray, " P"], negative: int
) -> Bool[np.ndarray, " P"]:
    """Returns which pairs are positive or negatives of one kind.

    Args:
      kind: of the pairs, indices of `KINDS`.
      negative: the kind of negatives to keep.
    """
    return (kind == POSITIVE) | (kind == negative)


def summary_by_kind(
    scores: Scores, kind: Integer[np.ndarray, " P"]
) -> dict[str, dict[str, float]]:
    """Returns `summary` of all positives against each kind of negatives.

    A gain on one kind may hide a loss on another.

    Args:
      scores: of the pairs.
      kind: of the pairs, indices of `KINDS`.

    Returns:
      By name of the kind, for the kinds of negatives that occur.
    """
    found = {}
    for number, name in enumerate(KINDS):
        if number == POSITIVE or not (kind == number).any():
            continue
        kept = pairs_of_kind(kind, number)
        found[name] = summary(scores[kept], kind[kept] == POSITIVE)
    return found


def bootstrap_interval(
    scores: Scores,
    positive: Positive,
    first: Shaped[np.ndarray, " P"],
    second: Shaped[np.ndarray, " P"],
    score: Callable[[np.ndarray, np.ndarray], float] = equal_error_rate,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of a score over identities.

    Identities are drawn, not pairs: those of one person are no independent
    evidence. A pair counts as often as its identity was drawn, or as the
    product of both, where it has two (the vertex bootstrap of Fogliato, Patil
    and Perona 2023, arXiv:2306.01198). Draws whose score is NaN, as those
    without a positive pair, are left out.

    Args:
      scores: of the pairs.
      positive: which pairs are positive.
      first: identity of each pair's first picture, numbers or names.
      second: identity of its second picture.
      score: maps scores and positives to a number.
      level: share of the draws inside the interval.
      draws: number of resamples.
      seed: of the resampling.

    Returns:
      (low, high); NaN where no draw has a score.
    """
    # Sorted once, draws need hardly be sorted.
    order = np.argsort(-scores, kind="stable")
    scores, positive = scores[order], positive[order]
    names, pairs = np.unique(
        np.stack([first[order], second[order]]), return_inverse=True
    )
    first, second = pairs.reshape(2, -1)
    alone = first == second
    rng = np.random.default_rng(seed)
    share = np.full(len(names), 1 / max(len(names), 1))
    values = []
    for _ in range(draws if len(names) else 0):
        drawn = rng.multinomial(len(names), share)
        count = np.where(alone, drawn[first], drawn[first] * drawn[second])
        rows = np.repeat(np.arange(len(count)), count)
        values.append(score(scores[rows], positive[rows]))
    known = np.array(values)[np.isfinite(values)]
    if not len(known):
        return np.nan, np.nan
    tail = (1 - level) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def held_out_parts(
    folds: Integer[np.ndarray, "P 2"],
) -> Iterator[tuple[Bool[np.ndarray, " P"], Bool[np.ndarray, " P"]]]:
    """Yields which pairs to fit on and which to score; each is scored once.

    A pair of two identities belongs to two folds. No identity of a scored
    pair is in a pair to fit on.

    Args:
      folds: of both identities of each pair.
    """
    numbers = np.unique(folds)
    lower, upper = folds.min(axis=1), folds.max(axis=1)
    for one, other in itertools.combinations_with_replacement(numbers, 2):
        scored = (lower == one) & (upper == other)
        if scored.any():
            yield ~np.isin(folds, (one, other)).any(axis=1), scored


class Logistic(NamedTuple):
    """A logistic regression: p = sigmoid(features @ weights + bias).

    Attributes:
      weights: float64 [F].
      bias: float.
    """

    weights: np.ndarray
    bias: float

    def logits(
        self, features: Real[np.ndarray, "P F"]
    ) -> Float64[np.ndarray, " P"]:
        """Returns log p / (1 - p) of the pairs: one score out of several."""
        return features.astype(np.float64) @ self.weights + self.bias

    def probabilities(
        self, features: Real[np.ndarray, "P F"]
    ) -> Float64[np.ndarray, " P"]:
        """Returns the probability that a pair is positive."""
        # Of both signs without overflow.
        return 0.5 * (1 + np.tanh(0.5 * self.logits(features)))


def fit_logistic(
    features: Real[np.ndarray, "P F"], positive: Positive
) -> Logistic:
    """Fits probabilities to scores: Platt's scaling, with one or more scores.

    Maximum likelihood with Platt's targets, (n + 1) / (n + 2) and 1 / (m + 2)
    for n positive and m negative pairs (Platt 1999; Lin, Lin and Weng 2007):
    finite where scores separate the pairs. Of a single score that is any good
    probabilities are a rising function, and its equal error rate stays.

    Args:
      features: scores of the pairs, finite.
      positive: which pairs are positive.
    """
    mean, std = features.mean(axis=0), features.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    x = np.column_stack([(features - mean) / std, np.ones(len(features))])
    count = positive.sum()
    targets = np.where(
        positive, (count + 1) / (count + 2), 1 / (len(positive) - count + 2)
    )
    # For features that say the same, of which any share is as good.
    ridge = 1e-6 * np.eye(x.shape[1])
    beta = np.zeros(x.shape[1])

    def cost(beta: np.ndarray) -> float:
        logits = x @ beta
        fit = (np.logaddexp(0, logits) - targets * logits).sum()
        return float(fit + 0.5 * beta @ ridge @ beta)

    for _ in range(100):
        p = 0.5 * (1 + np.tanh(0.5 * (x @ beta)))
        gradient = x.T @ (p - targets) + ridge @ beta
        hessian = (x.T * (p * (1 - p))) @ x + ridge
        newton, size = np.linalg.solve(hessian, gradient), 1.0
        now = cost(beta)
        while cost(beta - size * newton) > now and size > 1e-10:
            size /= 2
        beta = beta - size * newton
        if np.abs(size * newton).max() < 1e-10:
            break
    weights = beta[:-1] / std
    return Logistic(weights, float(beta[-1] - weights @ mean))
