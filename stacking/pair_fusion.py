"""One score of a pair out of several runs', chosen and scored without leaks.

Pairs of one person are not independent, so folds divide identities. A pair of
two identities belongs to two folds: it is scored with what was fitted on pairs
of the other folds alone. Which way to fuse is chosen on the same pairs once
more, by the same procedure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int
from scipy import optimize

from metrics.verification import (
    KINDS,
    auc,
    equal_error_rate,
    fit_logistic,
    held_out_parts,
)
from stacking.pair_members import COSINES_AND, PairTable

FOLDS = 5
# With fewer identities, hardly any pairs are left to fit on.
MIN_IDENTITIES = 20

# Of the pull that gives pairs which a score separates a finite fit.
_RIDGE = 1e-2

Score = Callable[[PairTable], Float64[np.ndarray, " P"]]
# Fits to a table, and returns what scores another one.
Fuse = Callable[[PairTable], Score]


def z_norm(fit: PairTable) -> Score:
    """Mean of the similarities, in standard deviations of the impostors'.

    Impostors are pairs of two identities; without any, all negatives.
    """
    impostors = fit.kind == KINDS.index("other")
    if impostors.sum() < 2:
        impostors = ~fit.positive
    scores = fit.similarity[impostors]
    mean, std = scores.mean(axis=0), scores.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    return lambda table: ((table.similarity - mean) / std).mean(axis=1)


def rank(fit: PairTable) -> Score:
    """Mean of the ranks among the pairs scored together, 0 to 1."""
    del fit

    def score(table: PairTable) -> Float64[np.ndarray, " P"]:
        return np.mean([_ranks(own) for own in table.similarity.T], axis=0)

    return score


def logistic(fit: PairTable) -> Score:
    """Log odds of a logistic regression on cosines and forgery scores."""
    found = fit_logistic(fit.features, fit.positive)
    return lambda table: found.logits(table.features)


def cosines_and(run: int | None, runs: int) -> Fuse:
    """Returns p(one identity) p(both real), of mean cosine and forgery score.

    As if the runs' embeddings were one, and forgeries were left to the run
    that finds them best. A pair is positive when both hold: a sum of both
    scores would let the one make up for the other.

    Args:
      run: whose forgery score, counted among the runs that have one; None
        takes the mean of them.
      runs: M, how many have cosines: the first columns of the features.
    """

    def two(
        features: Float64[np.ndarray, "P F"],
    ) -> tuple[Float64[np.ndarray, " P"], Float64[np.ndarray, " P"]]:
        cosines, real = np.split(features, [runs], axis=1)
        own = real.mean(axis=1) if run is None else real[:, run]
        return cosines.mean(axis=1), own

    def fuse(fit: PairTable) -> Score:
        product = fit_product(*two(fit.features), fit.positive)
        return lambda table: product(*two(table.features))

    return fuse


def fit_product(
    cosine: Float64[np.ndarray, " P"],
    log_real: Float64[np.ndarray, " P"],
    positive: Bool[np.ndarray, " P"],
) -> Callable[..., Float64[np.ndarray, " P"]]:
    """Fits p(positive) = sigmoid(a cosine + b) * exp(log_real)^w.

    By maximum likelihood, with a and w not negative and a slight pull to
    a = 0, b = 0, w = 1, so that the fit is finite where a score separates them.

    Args:
      cosine: of the pairs.
      log_real: log-probabilities that both pictures are real, at most 0.
      positive: which pairs are positive.

    Returns:
      What maps cosines and log-probabilities of pairs to log-odds.
    """
    mean, std = cosine.mean(), cosine.std() or 1.0

    def log_probability(theta, cosine, log_real):
        slope, bias, power = theta
        same = -np.logaddexp(0, -(slope * (cosine - mean) / std + bias))
        # Below 0 by more than rounding: log(1 - p) is needed, too.
        return np.minimum(same + power * log_real, -1e-12)

    def cost(theta: np.ndarray) -> float:
        log_p = log_probability(theta, cosine, log_real)
        fit = np.where(positive, log_p, log_not(log_p)).sum()
        return float(0.5 * _RIDGE * ((theta - start) ** 2).sum() - fit)

    start = np.array([0.0, 0.0, 1.0])
    theta = optimize.minimize(
        cost,
        start,
        method="L-BFGS-B",
        bounds=[(0, None), (None, None), (0, None)],
    ).x

    def log_odds(cosine, log_real):
        log_p = log_probability(theta, cosine, log_real)
        return log_p - log_not(log_p)

    return log_odds


def log_not(log_p: Float64[np.ndarray, " P"]) -> Float64[np.ndarray, " P"]:
    """Returns log(1 - p), exact at both ends."""
    return np.log(-np.expm1(log_p))


def single(column: int) -> Fuse:
    """Returns what takes the similarity of one run alone."""
    return lambda fit: lambda table: table.similarity[:, column]


def _ranks(scores: Float64[np.ndarray, " P"]) -> Float64[np.ndarray, " P"]:
    """Mean ranks of equal scores, as shares of the number of pairs."""
    _, place, counts = np.unique(
        scores, return_inverse=True, return_counts=True
    )
    last = np.cumsum(counts)
    return ((last - (counts - 1) / 2) / len(scores))[place]


def ways(names: Sequence[str], judges: Sequence[str]) -> dict[str, Fuse]:
    """Returns the ways to choose from, the simplest first.

    Args:
      names: of the runs.
      judges: names of those that have forgery scores, in the same order.
    """
    found: dict[str, Fuse] = {
        name: single(column) for column, name in enumerate(names)
    }
    if len(names) > 1:
        found.update(z_norm=z_norm, rank=rank)
        for column, name in enumerate(judges):
            found[COSINES_AND + name] = cosines_and(column, len(names))
        if len(judges) > 1:
            found[COSINES_AND + "all"] = cosines_and(None, len(names))
    if len(names) + len(judges) > 1:
        found["logistic"] = logistic
    return found


def folds_of(
    identities: np.ndarray, seed: int, parts: int = FOLDS
) -> Int[np.ndarray, "P 2"]:
    """Returns the fold of both identities of each pair.

    Args:
      identities: str [P, 2].
      seed: another seed gives another division.
      parts: how many folds.
    """
    names, index = np.unique(identities, return_inverse=True)

    def key(row: int) -> bytes:
        return hashlib.sha256(f"{seed}\n{names[row]}".encode()).digest()

    fold = np.empty(len(names), int)
    fold[sorted(range(len(names)), key=key)] = np.arange(len(names)) % parts
    return fold[index.reshape(identities.shape)]


def nested_scores(
    table: PairTable, fuses: Mapping[str, Fuse], folds: Int[np.ndarray, "P 2"]
) -> dict[str, Float64[np.ndarray, " P"]] | None:
    """Returns each way's scores of pairs that it was not fitted on, by name.

    None where some part has no positive or no negative pair to fit on.
    """
    found = {name: np.empty(len(folds)) for name in fuses}
    # It knows no kinds, so it cannot leak any; and ranks need all pairs.
    if "rank" in fuses:
        found["rank"] = rank(table)(table)
    for fit, scored in held_out_parts(folds):
        known = table.take(fit)
        if len(np.unique(known.positive)) < 2:
            return None
        held_out = table.take(scored)
        for name, fuse in fuses.items():
            if name != "rank":
                found[name][scored] = fuse(known)(held_out)
    return found


def choose(
    table: PairTable, scores: Mapping[str, Float64[np.ndarray, " P"]]
) -> str:
    """Returns the name of the largest AUC; ties by the equal error rate.

    That rate is one point of the curve, which hangs on few pairs: chosen by
    it, ways change from part to part, and do worse on pairs of others.
    """
    positive = table.positive

    def merit(name: str) -> tuple[float, float]:
        own = scores[name]
        return -auc(own, positive), equal_error_rate(own, positive)

    return min(scores, key=merit)


def nested_choice(
    table: PairTable, fuses: Mapping[str, Fuse], folds: Int[np.ndarray, "P 2"]
) -> Float64[np.ndarray, " P"] | None:
    """Returns scores of pairs that neither fit nor choice has seen.

    Log odds (Platt 1999), so that different choices can be compared. None
    where there are too few pairs for it.
    """
    found = np.empty(len(folds))
    for fit, scored in held_out_parts(folds):
        known = table.take(fit)
        inner = nested_scores(known, fuses, folds[fit])
        if inner is None:
            return None
        name = choose(known, inner)
        platt = fit_logistic(inner[name][:, None], known.positive)
        score = fuses[name](known)
        # Ranks are those among pairs of all folds.
        of = (
            score(table)[scored]
            if name == "rank"
            else score(table.take(scored))
        )
        found[scored] = platt.logits(of[:, None])
    return found
