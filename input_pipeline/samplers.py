"""Which image stands at which place of the endless training stream.

Every answer is a pure function of (seed, place), so that a run can be rebuilt
at any step.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

# Independent random streams of one seed.
SHUFFLE, AUGMENT = 0, 1


def generator(seed: int, stream: int, position: int) -> np.random.Generator:
    """A generator of its own for every position of every stream.

    Philox is counter-based: any (key, counter) can be gone to directly, and
    2^64 draws lie between two positions.
    """
    return np.random.Generator(
        np.random.Philox(key=(seed << 1) + stream, counter=position << 64)
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """The order of training images, epoch after epoch.

    An epoch is as many places as there are images, always. With `balance` 0
    it is a permutation: every image once. Otherwise class c, of n_c images,
    gets a share of the places proportional to n_c^(1 - balance): 1 gives all
    classes the same, 0.5 the square root of what they have (the samplings
    that Kang et al. 2020 compare for long-tailed data). Within a class every
    image comes equally often, one time more or less: a rare class is gone
    through several times an epoch, of a frequent one another part is taken
    each epoch. Shares that are no whole number of places are rounded up in
    some epochs and down in others.

    Attributes:
      rows: int32 `[N]`, the images.
      labels: int `[N]`, their classes.
      seed: of the order.
      balance: 0 to 1.
    """

    rows: np.ndarray
    labels: np.ndarray
    seed: int
    balance: float = 0.0

    def row(self, position: int) -> int:
        """The image at a place of the stream, 0 and on."""
        epoch, place = divmod(position, len(self.rows))
        return self.rows[_order(self, epoch)[place]]


# A batch goes over two epochs at the most; the rest is for several samplers.
@functools.lru_cache(maxsize=4)
def _order(sampler: Sampler, epoch: int) -> np.ndarray:
    """An epoch's places in `sampler.rows`: int `[N]`."""
    rng = generator(sampler.seed, SHUFFLE, epoch)
    if sampler.balance == 0:
        return rng.permutation(len(sampler.rows))
    classes, counts = np.unique(sampler.labels, return_counts=True)
    shares = _shares(counts, sampler.balance, rng)
    places = [
        _draw(np.flatnonzero(sampler.labels == label), share, rng)
        for label, share in zip(classes, shares.tolist(), strict=True)
    ]
    return rng.permutation(np.concatenate(places))


def _shares(
    counts: np.ndarray, balance: float, rng: np.random.Generator
) -> np.ndarray:
    """Places per class in one epoch, int `[C]`, which add up to the images.

    Systematic sampling: each is the whole number below or above what is due,
    and on average over epochs just that.
    """
    weights = counts ** (1.0 - balance)
    edges = np.cumsum(weights / weights.sum() * counts.sum())
    edges[-1] = counts.sum()
    edges = np.floor(edges + rng.random()).astype(int)
    return np.diff(edges, prepend=0)


def _draw(
    places: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """`count` of the places, all equally often, one time more or less."""
    rounds, rest = divmod(count, len(places))
    return np.concatenate(
        [np.tile(places, rounds), rng.permutation(places)[:rest]]
    )
