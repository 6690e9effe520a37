"""The order of training examples: position in an endless stream -> row.

Every answer is a pure function of (seed, position), so that a run can be
rebuilt at any step.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from typing import Protocol

import numpy as np

from core.errors import UserError

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


class Sampler(Protocol):
    """Any picklable object that says which row each position is."""

    def row(self, position: int) -> int:
        """Returns the row at a position of the stream, 0 and on."""


class _EpochSampler(abc.ABC):
    """Epoch after epoch, each of as many positions as there are rows."""

    rows: np.ndarray
    seed: int

    def __post_init__(self):
        if len(self.rows) == 0:
            raise UserError(
                "there is no image to train on; check --config.data.fold and "
                "--config.data.folds"
            )

    def row(self, position: int) -> int:
        """Returns the row at a position of the stream, 0 and on."""
        epoch, index = divmod(position, len(self.rows))
        return int(self.rows[_order(self, epoch)[index]])

    @abc.abstractmethod
    def draw_epoch(self, rng: np.random.Generator) -> np.ndarray:
        """Draws the order of an epoch, indices of `rows`: int `[N]`."""


# A batch goes over two epochs at the most; the rest is for several samplers.
@functools.lru_cache(maxsize=4)
def _order(sampler: _EpochSampler, epoch: int) -> np.ndarray:
    return sampler.draw_epoch(generator(sampler.seed, SHUFFLE, epoch))


@dataclasses.dataclass(frozen=True, eq=False)
class ShuffledSampler(_EpochSampler):
    """Every row once an epoch, in a new order each epoch.

    Attributes:
      rows: int `[N]`, the rows to train on.
      seed: of the order.

    Raises:
      UserError: there are no rows.
    """

    rows: np.ndarray
    seed: int

    def draw_epoch(self, rng: np.random.Generator) -> np.ndarray:
        """Draws a permutation, int `[N]`."""
        return rng.permutation(len(self.rows))


@dataclasses.dataclass(frozen=True, eq=False)
class MixedSampler:
    """Rows of two samplers in random order: each goes on where it was left.

    Every block of positions has its share of the second, at places drawn anew:
    evenly spaced they would meet the same neighbours, and MixUp mixes
    neighbours.

    Attributes:
      first: gives the rows of most positions.
      second: gives those of a share of the positions.
      share: of the second, 0 to 1.
      offset: added to the rows of the second.
      seed: of their places.
    """

    first: Sampler
    second: Sampler
    share: float
    offset: int
    seed: int

    def row(self, position: int) -> int:
        """Returns the row at a position of the stream, 0 and on."""
        block, place = divmod(position, _MIXED_BLOCK)
        position += int(_places(self.seed, block)[place]) - place
        before = math.floor(position * self.share)
        if math.floor((position + 1) * self.share) > before:
            return self.offset + self.second.row(before)
        return self.first.row(position - before)


# Large beside a batch, so that places look independent; small beside an epoch.
_MIXED_BLOCK = 1024


@functools.lru_cache(maxsize=4)
def _places(seed: int, block: int) -> np.ndarray:
    return generator(seed, SHUFFLE, block).permutation(_MIXED_BLOCK)


@dataclasses.dataclass(frozen=True, eq=False)
class TwoViewSampler:
    """Every row of another sampler twice, one behind the other.

    Augmentation is drawn from the position in the stream, so the two are
    different views of one image. A batch of even size has both or neither.

    Attributes:
      sampler: gives the rows.
    """

    sampler: Sampler

    def row(self, position: int) -> int:
        """Returns the row at a position of the stream, 0 and on."""
        return self.sampler.row(position // 2)


@dataclasses.dataclass(frozen=True, eq=False)
class BalancedSampler(_EpochSampler):
    """Rare classes more often than they are, epoch after epoch.

    An epoch has as many positions as there are rows, always. With `balance` 0
    it is that of a `ShuffledSampler`. Otherwise class c, of n_c rows, gets a
    share of the positions proportional to n_c^(1 - balance): 1 gives all
    classes the same, 0.5 the square root of what they have (the samplings
    that Kang et al. 2020 compare for long-tailed data). Within a class every
    row comes equally often, one time more or less: a rare class is gone
    through several times an epoch, of a frequent one another part is taken
    each epoch. Shares that are no whole number of positions are rounded up in
    some epochs and down in others.

    Attributes:
      rows: int `[N]`, the rows to train on.
      labels: int `[N]`, their classes.
      seed: of the order.
      balance: 0 to 1.

    Raises:
      UserError: there are no rows, or the balance is not from 0 to 1.
    """

    rows: np.ndarray
    labels: np.ndarray
    seed: int
    balance: float

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.balance <= 1:
            raise UserError(
                f"data.balance is {self.balance}; set --config.data.balance "
                "between 0 (classes as often as they are) and 1 (all equally "
                "often)"
            )

    def draw_epoch(self, rng: np.random.Generator) -> np.ndarray:
        """Draws the order of an epoch, int `[N]`."""
        if self.balance == 0:
            return rng.permutation(len(self.rows))
        classes, counts = np.unique(self.labels, return_counts=True)
        shares = _shares(counts, self.balance, rng)
        drawn = [
            _draw(np.flatnonzero(self.labels == label), share, rng)
            for label, share in zip(classes, shares.tolist(), strict=True)
        ]
        return rng.permutation(np.concatenate(drawn))


def _shares(
    counts: np.ndarray, balance: float, rng: np.random.Generator
) -> np.ndarray:
    """Positions per class in one epoch, int `[C]`, in sum one for each row.

    Systematic sampling: each is the whole number below or above what is due,
    and on average over epochs just that.
    """
    weights = counts ** (1.0 - balance)
    edges = np.cumsum(weights / weights.sum() * counts.sum())
    edges[-1] = counts.sum()
    edges = np.floor(edges + rng.random()).astype(int)
    return np.diff(edges, prepend=0)


def _draw(
    indices: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """`count` of the indices, all equally often, one time more or less."""
    rounds, rest = divmod(count, len(indices))
    return np.concatenate(
        [np.tile(indices, rounds), rng.permutation(indices)[:rest]]
    )
