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

from core.errors import UserError
from run_folder.layout import logits_path
from run_folder.predictions import Logits, read_logits
from stacking.runs import SPLITS, Run

# A run is refused if both hold: its excess over the other runs, in
# probability, and in standard errors. Choosing the checkpoint on the
# validation rows gives an excess of .01 or so.
_EXCESS = 0.08
_STANDARD_ERRORS = 4.0


@dataclass(frozen=True)
class LeakScore:
    """How much surer a run is of validation rows than of test rows.

    Attributes:
      run: which.
      auc: probability that a validation row has the larger margin than a
        test row (Mann and Whitney); one half for rows of the same kind.
      excess: `auc` less the median of the other runs.
      standard_errors: the excess in standard errors.
    """

    run: Run
    auc: float
    excess: float
    standard_errors: float

    @property
    def is_leak(self) -> bool:
        """Whether chance and hard test images explain it no longer."""
        return self.excess > _EXCESS and self.standard_errors > _STANDARD_ERRORS


def leak_scores(runs: Sequence[Run]) -> list[LeakScore]:
    """One per run that can be judged; empty with fewer than two of them."""
    pairs = [(run, _same_models(run)) for run in runs]
    runs = [run for run, parts in pairs if parts]
    if len(runs) < 2:
        return []
    auc, error = [], []
    for parts in (parts for _, parts in pairs if parts):
        rows = np.array([len(val) for val, _ in parts])
        share = rows / rows.sum()
        found = np.array([_auc(*part) for part in parts])
        auc.append(float(share @ found[:, 0]))
        error.append(float(np.sqrt(share**2 @ found[:, 1] ** 2)))
    found = []
    for index, run in enumerate(runs):
        others = auc[:index] + auc[index + 1 :]
        excess = auc[index] - float(np.median(others))
        found.append(LeakScore(run, auc[index], excess, excess / error[index]))
    return found


def _same_models(run: Run) -> list[tuple[Logits, Logits]]:
    """Pairs (val, test) of logits that the same weights have made.

    Joined folds average their test logits, which are less sure than those of
    each model. So such a run is judged by the folds inside it, if they are
    still there.
    """
    if not (run.val and run.test and len(run.val) and len(run.test)):
        return []
    names = run.metadata.get("fold_runs")
    if not names and np.ptp(run.val.fold) == 0:
        return [(run.val, run.test)]
    try:
        return [
            tuple(
                read_logits(logits_path(run.path / str(name), split))
                for split in SPLITS
            )
            for name in names or ()
        ]
    except UserError:
        return []


def _auc(val: Logits, test: Logits) -> tuple[float, float]:
    """(`LeakScore.auc`, its standard error) of one model."""
    val, test = _margins(val.logits), np.sort(_margins(test.logits))
    n, m = len(val), len(test)
    # Mann and Whitney's U over n * m; a tie is half a win.
    below = np.searchsorted(test, val, side="left")
    not_above = np.searchsorted(test, val, side="right")
    u = float((below + not_above).mean() / (2 * m))
    return u, float(np.sqrt((n + m + 1) / (12.0 * n * m)))


def refuse_leaks(found: Sequence[LeakScore]) -> None:
    """Raises a UserError that names the worst leak, if there is one."""
    leaks = [score for score in found if score.is_leak]
    if not leaks:
        return
    worst = max(leaks, key=lambda score: score.excess)
    raise UserError(
        f"{worst.run.path} has seen its validation rows: it is surer of them "
        f"than of the test rows in {worst.auc:.0%} of pairs, "
        f"{worst.excess:.0%} more than the other runs "
        f"({worst.standard_errors:.0f} standard errors); train it without "
        "them or leave it out of --runs, or pass --no-leak-check if you know "
        "better"
    )


def _margins(logits: np.ndarray) -> np.ndarray:
    top_two = np.partition(logits, logits.shape[1] - 2, axis=1)[:, -2:]
    return top_two[:, 1] - top_two[:, 0]
