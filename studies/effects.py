"""Differences between cells of a study, with intervals.

A difference is taken between runs of the same seed on the same validation
examples, and averaged over seeds. Its interval comes from a bootstrap that
draws seeds and examples independently of each other (the pigeonhole bootstrap:
Owen 2007, arXiv:0712.1111), the same for both sides. Of S seeds S - 1 are
drawn, which makes their part of the variance unbiased (Rao & Wu 1988). The
interval is the estimate plus and minus the draws' standard deviation times
Student's t, as three seeds say little about their own spread; its degrees of
freedom are Satterthwaite's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special

from core.errors import UserError
from studies.outcomes import Outcome

_DRAWS = 2000
_LEVEL = 0.95
# Numbers of a block of draws.
_DRAWN_AT_ONCE = 4_000_000
# Above, scores of classes are of no use to a person, and large.
_MOST_CLASSES = 200

# (cell, seed): by their numbers.
Key = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A difference with its interval.

    Attributes:
      value: of the metric, one side minus the other.
      low, high: of the 95 % interval; NaN where nothing tells of chance, as
        one seed without scores of examples.
    """

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Contrast:
    """One side of a study against another.

    Attributes:
      estimate: of the difference.
      classes: the same by class; {} without.
      seeds: how many pairs of runs, by seed, it rests on.
    """

    estimate: Estimate
    classes: dict[str, Estimate]
    seeds: int


class Scores:
    """Scores of all runs, for all examples and for draws of them.

    Args:
      outcomes: of the runs.
      seed: of the draws.
      draws: how many, B.

    Attributes:
      examples: how many each run was scored on; 0 where only scores of runs
        are known.

    Raises:
      UserError: runs were validated on different examples, or classes.
    """

    def __init__(
        self,
        outcomes: Mapping[Key, Outcome],
        seed: int = 0,
        draws: int = _DRAWS,
    ):
        rng, self._draws = np.random.default_rng(seed), draws
        self._values = {key: found.value for key, found in outcomes.items()}
        self._drawn: dict[Key, np.ndarray] = {}
        self._class_values: dict[Key, np.ndarray] = {}
        self._class_drawn: dict[Key, np.ndarray] = {}
        self.classes: tuple[str, ...] = ()
        self.examples = 0
        parts = {key: o.examples for key, o in outcomes.items()}
        if not parts or any(part is None for part in parts.values()):
            return
        first = next(iter(parts.values()))
        for part in parts.values():
            if part.classes != first.classes or not np.array_equal(
                part.ids, first.ids
            ):
                raise UserError(
                    "the runs of this study were validated on different "
                    "images or classes, so they cannot be paired; leave out "
                    "what changes the data, or compare with --metric on "
                    "another study"
                )
        self.examples = len(first.ids)
        with_classes = 0 < len(first.classes) <= _MOST_CLASSES
        self.classes = first.classes if with_classes else ()
        sums = _drawn_sums([p.counts for p in parts.values()], draws, rng)
        for (key, part), drawn in zip(parts.items(), sums, strict=True):
            self._drawn[key] = part.score(drawn)
            if with_classes:
                whole = part.counts.sum(axis=0)[None]
                self._class_values[key] = part.class_score(whole)[0]
                self._class_drawn[key] = part.class_score(drawn)

    def value(self, key: Key) -> float:
        """Returns the score of a run."""
        return self._values[key]

    def contrast(
        self, pairs: Sequence[tuple[int, int]], seeds: Sequence[int]
    ) -> Contrast | None:
        """Compares cells.

        Args:
          pairs: of cells, the one and its baseline; differences are averaged
            over them.
          seeds: of the study; those count for which all runs are there.

        Returns:
          None where no seed has all runs.
        """
        cells = {cell for pair in pairs for cell in pair}
        seeds = [
            s for s in seeds if all((cell, s) in self._values for cell in cells)
        ]
        if not seeds:
            return None

        def differences(table: Mapping[Key, np.ndarray | float]) -> np.ndarray:
            return np.stack(
                [
                    np.mean([table[a, s] - table[b, s] for a, b in pairs], 0)
                    for s in seeds
                ]
            )

        weights = self._seed_weights(len(seeds))
        values = differences(self._values)
        if self.examples:
            drawn = differences(self._drawn)
        else:
            # Of one seed nothing is drawn: no spread would look like certainty.
            known = values if len(seeds) > 1 else np.full_like(values, np.nan)
            drawn = np.repeat(known[:, None], self._draws, axis=1)
        classes = {}
        if self.classes:
            by_class = differences(self._class_values)
            drawn_by_class = differences(self._class_drawn)
            for number, name in enumerate(self.classes):
                classes[name] = _estimate(
                    by_class[:, number], drawn_by_class[..., number], weights
                )
        return Contrast(_estimate(values, drawn, weights), classes, len(seeds))

    def _seed_weights(self, seeds: int) -> np.ndarray:
        """Shares of the seeds in each draw, [B, S]."""
        if seeds == 1:
            return np.ones((self._draws, 1))
        rng = np.random.default_rng(seeds)
        share = np.full(seeds, 1 / seeds)
        drawn = rng.multinomial(seeds - 1, share, size=self._draws)
        return drawn / (seeds - 1)


def _drawn_sums(
    counts: Sequence[np.ndarray], draws: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Sums of counts [N, ...] over the same drawn examples, [B, ...] each."""
    examples = len(counts[0])
    sums = [np.empty((draws, *one.shape[1:])) for one in counts]
    share = np.full(examples, 1 / max(examples, 1))
    # How often each example was drawn would take gigabytes for all draws.
    step = max(1, _DRAWN_AT_ONCE // max(examples, 1))
    for start in range(0, draws, step):
        size = min(step, draws - start)
        weights = rng.multinomial(examples, share, size=size).astype(np.float64)
        for one, found in zip(counts, sums, strict=True):
            flat = weights @ one.reshape(examples, -1)
            found[start : start + size] = flat.reshape(size, *one.shape[1:])
    return sums


def _estimate(
    values: np.ndarray, drawn: np.ndarray, weights: np.ndarray
) -> Estimate:
    """An estimate from differences of seeds.

    Args:
      values: [S], on all examples.
      drawn: [S, B], on draws of the examples.
      weights: [B, S], of the seeds in each draw.
    """
    value, seeds = float(values.mean()), len(values)
    # Draws that have no row of a class have no score of it.
    known = np.isfinite(drawn).all(axis=0)
    if not np.isfinite(value) or not known.any():
        return Estimate(value, float("nan"), float("nan"))
    drawn, weights = drawn[:, known], weights[known]
    spread = float((weights * drawn.T).sum(axis=1).std())
    of_seeds = float(values.var(ddof=1)) / seeds if seeds > 1 else 0.0
    freedom = np.inf
    if of_seeds > 0:
        of_examples = float(drawn.mean(axis=0).var())
        freedom = (seeds - 1) * (1 + of_examples / of_seeds) ** 2
    half = float(special.stdtrit(freedom, (1 + _LEVEL) / 2)) * spread
    return Estimate(value, value - half, value + half)
