"""Scores of a retrieval: which pictures of a gallery are nearest to a query?

A gallery picture is relevant to a query of the same label; a query that is
itself in the gallery is no answer to itself. Queries without a relevant
picture have no score: they are left out of the means, and counted.

Two definitions are in use for two of the scores. With n relevant pictures, of
which h are among the first k: precision@k is h / k, and in
open-metric-learning (OML) h / min(n, k). MAP@k is the sum of the precisions
at the places of the hits, divided by min(n, k), and in OML by h: a query whose
only hit is the first of five relevant pictures scores 0.2 and 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, Integer

# Floats of a block of distances, of which two are alive at a time: 64 MiB.
_BLOCK = 2**23


def nearest(
    queries: Float[np.ndarray, "Q D"],
    gallery: Float[np.ndarray, "G D"],
    k: int,
    own: Integer[np.ndarray, " Q"] | None = None,
) -> tuple[Int64[np.ndarray, "Q K"], Float32[np.ndarray, "Q K"]]:
    """Returns the nearest rows of a gallery, nearest first.

    Distances are L2. They are computed for a block of queries at a time: of
    60,000 against 60,000 all at once are 14 GB.

    Args:
      queries: embeddings.
      gallery: embeddings.
      k: how many to return, at most all there are.
      own: row of the gallery that is the query itself, and left out; -1 for
        none.

    Returns:
      Rows and distances; a row of -1 at an infinite distance where the
      gallery has no more.
    """
    queries = queries.astype(np.float32, copy=False)
    gallery = gallery.astype(np.float32, copy=False)
    rows = np.full((len(queries), k), -1, np.int64)
    distances = np.full((len(queries), k), np.inf, np.float32)
    found = min(k, len(gallery))
    if not found:
        return rows, distances
    squares = (gallery * gallery).sum(axis=1)
    # The exact distances of a block take [block, k, D].
    width = max(len(gallery), found * gallery.shape[1])
    block = max(1, _BLOCK // width)
    for start in range(0, len(queries), block):
        part = slice(start, start + block)
        near = queries[part] @ gallery.T
        # |q - g|^2 without |q|^2, which does not change the order.
        near *= -2
        near += squares
        if own is not None:
            known = np.flatnonzero(own[part] >= 0)
            near[known, own[part][known]] = np.inf
        chosen = _smallest(near, found)
        # Anew, as differences: the sum above rounds small distances away.
        apart = gallery[chosen] - queries[part, None]
        exact = np.sqrt((apart * apart).sum(axis=2))
        away = ~np.isfinite(np.take_along_axis(near, chosen, axis=1))
        chosen[away], exact[away] = -1, np.inf
        order = np.argsort(exact, axis=1, kind="stable")
        rows[part, :found] = np.take_along_axis(chosen, order, axis=1)
        distances[part, :found] = np.take_along_axis(exact, order, axis=1)
    return rows, distances


def _smallest(values: np.ndarray, count: int) -> np.ndarray:
    """Columns of the smallest values of each row, in ascending order."""
    if count == values.shape[1]:
        return np.tile(np.arange(count), (len(values), 1))
    chosen = np.empty((len(values), count), np.int64)
    # Row by row: indices of all are twice the memory of the values.
    for number, row in enumerate(values):
        chosen[number] = np.argpartition(row, count)[:count]
    return np.sort(chosen, axis=1)


def vote(
    queries: Float[np.ndarray, "Q D"],
    gallery: Float[np.ndarray, "G D"],
    labels: Integer[np.ndarray, " G"],
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Float[np.ndarray, "Q C"]:
    """Returns the votes of the k nearest for each class, by cosine.

    Each of them votes for its label with exp(cosine / temperature): the
    weighted kNN classifier of Wu et al., CVPR 2018, arXiv 1805.01978.

    Args:
      queries: features, of any length.
      gallery: features.
      labels: of the gallery, each below `num_classes`.
      num_classes: C.
      k: how many vote, at most all there are.
      temperature: the lower, the more the nearest one decides.

    Returns:
      float64, rows of sum 1.
    """

    def unit(vectors: np.ndarray) -> np.ndarray:
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.maximum(length, 1e-12)

    rows, distances = nearest(
        unit(queries), unit(gallery), min(k, len(gallery))
    )
    # |q - g|^2 = 2 - 2 cos; the nearest one's vote is 1, so none overflows.
    squares = distances.astype(np.float64) ** 2
    votes = np.exp((squares[:, :1] - squares) / (2 * temperature))
    found = np.zeros((len(queries), num_classes))
    at = np.arange(len(queries))[:, None]
    np.add.at(found, (at, labels[rows]), votes)
    return found / found.sum(axis=1, keepdims=True)


class Ranking(NamedTuple):
    """What was retrieved for each query.

    Attributes:
      hits: bool [Q, K], whether the retrieved picture is relevant.
      relevant: int64 [Q], n, pictures in the gallery that are.
    """

    hits: np.ndarray
    relevant: np.ndarray


def rank(
    rows: Integer[np.ndarray, "Q K"],
    query_labels: Integer[np.ndarray, " Q"],
    gallery_labels: Integer[np.ndarray, " G"],
    own: Integer[np.ndarray, " Q"] | None = None,
) -> Ranking:
    """Returns which of the retrieved pictures are relevant.

    Args:
      rows: of the gallery, from `nearest`.
      query_labels: what the queries show; below 0 matches nothing.
      gallery_labels: what the gallery shows.
      own: as given to `nearest`.
    """
    if not len(gallery_labels):
        none = np.zeros(len(rows), np.int64)
        return Ranking(np.zeros(rows.shape, bool), none)
    wanted = query_labels[:, None]
    hits = (rows >= 0) & (gallery_labels[rows] == wanted) & (wanted >= 0)
    names, counts = np.unique(gallery_labels, return_counts=True)
    places = np.searchsorted(names, query_labels)
    places = np.minimum(places, len(names) - 1)
    there = (names[places] == query_labels) & (query_labels >= 0)
    relevant = np.where(there, counts[places], 0)
    if own is not None:
        itself = (own >= 0) & (gallery_labels[own] == query_labels)
        relevant = relevant - (itself & there)
    return Ranking(hits, relevant.astype(np.int64))


def answerable(ranking: Ranking) -> Bool[np.ndarray, " Q"]:
    """Returns which queries have a relevant picture in the gallery."""
    return ranking.relevant > 0


def cmc(ranking: Ranking, k: int) -> Float[np.ndarray, " A"]:
    """Returns 1 for each answerable query with a hit among the first k."""
    return _kept(ranking, k).any(axis=1).astype(np.float64)


def precision(
    ranking: Ranking, k: int, oml: bool = False
) -> Float[np.ndarray, " A"]:
    """Returns precision@k of each answerable query.

    Args:
      ranking: of the queries.
      k: at most the pictures retrieved.
      oml: whether to divide by min(n, k) instead of k.
    """
    hits = _kept(ranking, k).sum(axis=1)
    return hits / (_ideal(ranking, k) if oml else k)


def average_precision(
    ranking: Ranking, k: int, oml: bool = False
) -> Float[np.ndarray, " A"]:
    """Returns the average precision of each answerable query; MAP's terms.

    Args:
      ranking: of the queries.
      k: at most the pictures retrieved.
      oml: whether to divide by the hits instead of min(n, k).
    """
    hits = _kept(ranking, k)
    at_hits = hits * (hits.cumsum(axis=1) / np.arange(1, k + 1))
    count = np.maximum(hits.sum(axis=1), 1) if oml else _ideal(ranking, k)
    return at_hits.sum(axis=1) / count


def scores(ranking: Ranking, ks: Sequence[int]) -> dict[str, float]:
    """Returns the means over the answerable queries, by name.

    `cmc_5`, `precision_5`, `map_5`, and OML's `precision_5_oml` and
    `map_5_oml`, for each k; `queries`, those answerable, and `unanswerable`.
    NaN where no query is answerable.
    """
    count = int(answerable(ranking).sum())
    found = {"queries": count, "unanswerable": len(ranking.hits) - count}
    for k in ks:
        for name, values in (
            (f"cmc_{k}", cmc(ranking, k)),
            (f"precision_{k}", precision(ranking, k)),
            (f"precision_{k}_oml", precision(ranking, k, oml=True)),
            (f"map_{k}", average_precision(ranking, k)),
            (f"map_{k}_oml", average_precision(ranking, k, oml=True)),
        ):
            found[name] = float(values.mean()) if count else np.nan
    return found


def _kept(ranking: Ranking, k: int) -> np.ndarray:
    """The first k hits of the answerable queries."""
    if k > ranking.hits.shape[1]:
        retrieved = ranking.hits.shape[1]
        raise ValueError(f"k is {k}, but {retrieved} were retrieved")
    return ranking.hits[answerable(ranking), :k]


def _ideal(ranking: Ranking, k: int) -> np.ndarray:
    return np.minimum(ranking.relevant[answerable(ranking)], k)
