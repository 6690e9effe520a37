"""Scores of generated images, over features of a fixed network.

They compare only within the same features: a Fréchet distance here is no FID,
which is over those of one Inception network. All take float `[N, D]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from core.errors import UserError

# Rows of a matrix of distances that are in memory at a time.
BLOCK = 1024
KID_SUBSETS, KID_SIZE = 100, 1000
PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5


class Kid(NamedTuple):
    """Kernel distance: mean and standard deviation over random subsets."""

    mean: float
    std: float


class Manifold(NamedTuple):
    """How much of generated images is real, and of real ones is covered.

    Attributes:
      precision: share of generated images inside the real ones' balls.
      recall: share of real images inside the generated ones' balls.
      density: how many real balls a generated image is in, over k.
      coverage: share of real balls with a generated image in them.
    """

    precision: float
    recall: float
    density: float
    coverage: float


class Memorised(NamedTuple):
    """How near generated images are to those that were trained on.

    Attributes:
      share: of generated images nearer to a training image than all but 1 %
        of the held-out ones; about 0.01 where nothing is memorised.
      nearest: int `[N]`, the training image nearest to each.
      distance: float `[N]`, how far that is.
      held_out: median over the held-out images.
    """

    share: float
    nearest: np.ndarray
    distance: np.ndarray
    held_out: float


def kernel_distance(
    real: np.ndarray,
    generated: np.ndarray,
    *,
    subsets: int = KID_SUBSETS,
    size: int | None = None,
    seed: int = 0,
) -> Kid:
    """Squared maximum mean discrepancy, kernel (x·y / D + 1)^3, unbiased.

    Binkowski et al., "Demystifying MMD GANs", ICLR 2018, arXiv 1801.01401.

    Args:
      real: `[N, D]`.
      generated: `[M, D]`.
      subsets: how many random subsets are averaged; their spread is given,
        too.
      size: rows of a subset; left out, 1,000, or half of what there is, as
        subsets of all rows would have no spread.
      seed: of the subsets.

    Raises:
      UserError: there are fewer than two rows of either.
    """
    real, generated = _checked(real, generated)
    if size is None:
        size = max(min(KID_SIZE, min(len(real), len(generated)) // 2), 2)
    rng = np.random.default_rng(seed)
    found = [
        _mmd2(
            real[rng.choice(len(real), size, replace=False)],
            generated[rng.choice(len(generated), size, replace=False)],
        )
        for _ in range(subsets)
    ]
    return Kid(float(np.mean(found)), float(np.std(found)))


def _mmd2(x: np.ndarray, y: np.ndarray) -> float:
    count, width = x.shape

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / width + 1) ** 3

    within = 0.0
    for rows in (x, y):
        gram = kernel(rows, rows)
        within += (gram.sum() - np.trace(gram)) / (count * (count - 1))
    return float(within - 2 * kernel(x, y).mean())


def frechet_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """Distance of the two Gaussians: |m1 - m2|² + tr(S1 + S2 - 2 √(S1 S2)).

    Heusel et al., NeurIPS 2017, arXiv 1706.08500. It is too large by about
    1/N: compare with that of two halves of the real images.

    Args:
      real: `[N, D]`.
      generated: `[M, D]`.

    Raises:
      UserError: there are fewer than two rows of either.
    """
    real, generated = _checked(real, generated)
    shift = real.mean(0) - generated.mean(0)
    one, two = (np.cov(x, rowvar=False, ddof=1) for x in (real, generated))
    one, two = np.atleast_2d(one), np.atleast_2d(two)
    # The root of a product of two symmetric matrices, by its eigenvalues.
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ two @ root)
    cross = np.sqrt(np.maximum(inner, 0)).sum()
    distance = shift @ shift + np.trace(one) + np.trace(two) - 2 * cross
    return float(max(distance, 0.0))


def manifold(real: np.ndarray, generated: np.ndarray) -> Manifold:
    """Precision and recall (k = 3), density and coverage (k = 5).

    Kynkäänniemi et al., NeurIPS 2019, arXiv 1904.06991; Naeem et al., ICML
    2020, arXiv 2002.09797. A ball reaches to its middle's k-th neighbour
    among its own kind.

    Args:
      real: `[N, D]`.
      generated: `[M, D]`.

    Raises:
      UserError: there are fewer rows of either than neighbours.
    """
    real, generated = _checked(real, generated, DENSITY_NEIGHBOURS + 1)
    real_3, real_5 = _radii(real).T
    generated_3, _ = _radii(generated).T
    precise, count = np.zeros(len(generated), bool), 0
    recalled = np.zeros(len(real), bool)
    covered = np.zeros(len(real), bool)
    for rows, squares in _distances(real, generated):
        precise |= (squares <= real_3[rows, None]).any(0)
        recalled[rows] = (squares <= generated_3[None]).any(1)
        inside = squares <= real_5[rows, None]
        count += int(inside.sum())
        covered[rows] = inside.any(1)
    return Manifold(
        float(precise.mean()),
        float(recalled.mean()),
        count / (DENSITY_NEIGHBOURS * len(generated)),
        float(covered.mean()),
    )


def memorised(
    trained: np.ndarray, generated: np.ndarray, held_out: np.ndarray
) -> Memorised:
    """Compares distances to the nearest training image.

    Args:
      trained: `[N, D]`, what the generator has seen.
      generated: `[M, D]`.
      held_out: `[K, D]`, real images that it has not seen.
    """
    trained, generated = _checked(trained, generated, 1)
    trained, held_out = _checked(trained, held_out, 1)
    nearest, distance = _nearest(generated, trained)
    _, usual = _nearest(held_out, trained)
    limit = np.quantile(usual, 0.01)
    return Memorised(
        float((distance < limit).mean()),
        nearest,
        distance,
        float(np.median(usual)),
    )


def _nearest(
    rows: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    index = np.zeros(len(rows), int)
    distance = np.zeros(len(rows))
    for part, squares in _distances(rows, others):
        index[part] = squares.argmin(1)
        distance[part] = np.sqrt(squares.min(1))
    return index, distance


def _radii(x: np.ndarray) -> np.ndarray:
    """Squared distances to the 3rd and 5th neighbour: `[N, 2]`."""
    found = np.zeros((len(x), 2))
    # The nearest of all is the point itself.
    wanted = [PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS]
    for rows, squares in _distances(x, x):
        squares[np.arange(len(rows)), rows] = 0
        found[rows] = np.partition(squares, wanted, axis=1)[:, wanted]
    return found


def _distances(
    x: np.ndarray, y: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields rows of `x`, block by block, and their squared distances to y."""
    norms = np.square(y).sum(1)
    for start in range(0, len(x), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(x)))
        part = x[rows]
        squares = np.square(part).sum(1)[:, None] + norms - 2 * part @ y.T
        yield rows, np.maximum(squares, 0)


def _checked(
    real: np.ndarray, generated: np.ndarray, least: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    if min(len(real), len(generated)) < least:
        raise UserError(
            f"{len(real)} real and {len(generated)} generated images are too "
            f"few to compare; take {least} or more of each"
        )
    return np.asarray(real, np.float64), np.asarray(generated, np.float64)
