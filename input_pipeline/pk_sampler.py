"""PxK batches: P identities with K pictures each, as metric losses need."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from core.errors import UserError
from input_pipeline.samplers import SHUFFLE, generator

# Streams of one seed inside `SHUFFLE`: positions from here on are batches,
# those before are epochs.
_BATCHES = 1 << 60

# Pictures of an identity from which on a few are drawn faster than shuffled.
_MANY = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class PKSampler:
    """Batches of P identities with K pictures each, without end.

    An epoch goes through all identities in a new order, P a batch; what is
    lacking in its last batch is drawn from the other identities of the epoch.
    So every identity comes at least once an epoch, and none twice in a batch.
    An epoch has `ceil(L / P)` batches, whatever the number of pictures.

    Of an identity with n >= K pictures, K different ones are drawn; one with
    fewer gives all n, and K - n of them again, drawn with replacement (as in
    open-metric-learning's BalanceSampler, which drops the last batch).

    The K pictures of an identity stand side by side.

    Attributes:
      rows: int [N], the rows to train on.
      labels: int [N], their identities.
      seed: of the order.
      identities: P, of a batch.
      pictures: K, of each of them.

    Raises:
      UserError: there are fewer than P identities or than two.
    """

    rows: np.ndarray
    labels: np.ndarray
    seed: int
    identities: int
    pictures: int

    def __post_init__(self):
        known = len(self._groups[0])
        if known < 2:
            raise UserError(
                f"the rows to train on show {known} of the two identities or "
                "more that there must be; add pictures of others, or set "
                "--config.data.fold and --config.data.folds to train on more"
            )
        if self.identities > known:
            raise UserError(
                f"a batch is to hold {self.identities} identities, and the "
                f"rows to train on show {known}; set "
                f"--config.verify.identities={known} or lower, and the stages' "
                f"batch_size to {known} x {self.pictures} = "
                f"{known * self.pictures}"
            )

    def row(self, position: int) -> int:
        """Returns the row at a position of the stream, 0 and on."""
        batch, slot = divmod(position, self.identities * self.pictures)
        return int(_batch(self, batch)[slot])

    @property
    def batches_per_epoch(self) -> int:
        """How many batches go through all identities once."""
        return -(-len(self._groups[0]) // self.identities)

    @functools.cached_property
    def _groups(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Indices of `rows` by identity, where each begins, how many it has.

        The arrays are int [L], int [L] and int [N].
        """
        order = np.argsort(self.labels, kind="stable")
        _, starts, counts = np.unique(
            self.labels[order], return_index=True, return_counts=True
        )
        return starts, counts, order

    def draw_batch(self, number: int) -> np.ndarray:
        """Draws the rows of a batch, int [P * K]."""
        starts, counts, order = self._groups
        epoch, index = divmod(number, self.batches_per_epoch)
        first = index * self.identities
        plan = _epoch(self, epoch)
        rng = generator(self.seed, SHUFFLE, _BATCHES + number)
        chosen = plan[first : first + self.identities]
        lacking = self.identities - len(chosen)
        if lacking:  # From before, where none of the chosen is.
            again = rng.choice(first, lacking, replace=False)
            chosen = np.concatenate([chosen, plan[again]])
        drawn = np.stack(
            [
                starts[label] + _draw(int(counts[label]), self.pictures, rng)
                for label in chosen
            ]
        )
        return self.rows[order[drawn]].ravel()


def _draw(count: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """`wanted` numbers below `count`, different ones as far as there are."""
    if wanted <= count:
        if count < _MANY:
            return rng.permutation(count)[:wanted]
        return rng.choice(count, wanted, replace=False)
    again = rng.integers(count, size=wanted - count)
    return np.concatenate([rng.permutation(count), again])


@functools.lru_cache(maxsize=4)
def _epoch(sampler: PKSampler, epoch: int) -> np.ndarray:
    """The order of the identities in an epoch, int [L]."""
    rng = generator(sampler.seed, SHUFFLE, epoch)
    return rng.permutation(len(sampler._groups[0]))


# One process asks for the rows of one batch after those of another.
@functools.lru_cache(maxsize=8)
def _batch(sampler: PKSampler, number: int) -> np.ndarray:
    return sampler.draw_batch(number)
