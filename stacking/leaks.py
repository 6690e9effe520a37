"""A run that has seen its validation rows, caught by its own confidence.

Whoever is trained on some images is surer of them than of new ones. The check
compares the margins (the gap between the two highest logits) of a run's
validation rows with those of its test rows, by ranks: no labels are needed,
and no temperature or scale of the logits changes the answer. Test images that
are harder than the rest shift every run alike, so a run is judged against the
others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from errors import UserError
from stacking.runs import Run

# A run is refused if both hold: its excess over the other runs, in
# probability, and in standard errors. Choosing the checkpoint on the
# validation rows gives an excess of .01 or so.
_EXCESS = 0.08
_STANDARD_ERRORS = 4.0


@dataclass(frozen=True)
class Suspicion:
    """How much surer a run is of validation rows than of test rows.

    Attributes:
      run: which.
      surer: probability that a validation row has the larger margin than a
        test row; one half for rows of the same kind.
      excess: `surer` less the median of the other runs.
      standard_errors: the excess in standard errors.
    """

    run: Run
    surer: float
    excess: float
    standard_errors: float

    @property
    def is_leak(self) -> bool:
        """Whether chance and hard test images explain it no longer."""
        return self.excess > _EXCESS and self.standard_errors > _STANDARD_ERRORS


def suspicions(runs: Sequence[Run]) -> list[Suspicion]:
    """One per run that has both splits; empty with fewer than two runs."""
    runs = [run for run in runs if run.val and run.test]
    if len(runs) < 2:
        return []
    surer, error = [], []
    for run in runs:
        val = _margins(run.val.logits)
        test = np.sort(_margins(run.test.logits))
        n, m = len(val), len(test)
        # Mann and Whitney's U over n * m; a tie is half a win.
        below = np.searchsorted(test, val, side="left")
        not_above = np.searchsorted(test, val, side="right")
        surer.append(float((below + not_above).mean() / (2 * m)))
        error.append(np.sqrt((n + m + 1) / (12.0 * n * m)))
    found = []
    for index, run in enumerate(runs):
        others = surer[:index] + surer[index + 1 :]
        excess = surer[index] - float(np.median(others))
        found.append(
            Suspicion(run, surer[index], excess, excess / error[index])
        )
    return found


def refuse_leaks(found: Sequence[Suspicion]) -> None:
    """Raises a UserError that names the run most suspected, if any."""
    leaks = [suspicion for suspicion in found if suspicion.is_leak]
    if not leaks:
        return
    worst = max(leaks, key=lambda suspicion: suspicion.excess)
    raise UserError(
        f"{worst.run.path} has seen its validation rows: it is surer of them "
        f"than of the test rows in {worst.surer:.0%} of pairs, "
        f"{worst.excess:.0%} more than the other runs "
        f"({worst.standard_errors:.0f} standard errors); train it without "
        "them or leave it out of --runs, or pass --no-leak-check if you know "
        "better"
    )


def _margins(logits: np.ndarray) -> np.ndarray:
    top_two = np.partition(logits, logits.shape[1] - 2, axis=1)[:, -2:]
    return top_two[:, 1] - top_two[:, 0]
