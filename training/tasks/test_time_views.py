"""Test-time views: which are averaged, and what that is worth.

`eval.tta` names views whose logits are averaged. With `auto` before them, as
many of the first of them are taken as are best on the validation rows.

That choice is made on labels, so a score of the same rows under it would be
too high, and stacking, which learns from the exported logits as if nobody had
looked, would be misled. It is therefore cross-fitted: the validation rows are
divided into halves (by class, and by group where there are groups), and each
half is averaged over the views that are best on the other half. No row has a
part in the choice of its own views, so exported logits stay out-of-fold and
their score is that of the procedure. What new images get, the test rows among
them, is chosen on all validation rows.

The price: if the halves disagree, validation rows are averaged over other
views than test rows. Through the other half, a row's label still bears on the
views of rows that a stack learns from: one of three answers for all of them
together, which no row can be read from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from configs.common import AUTO, view_sets
from metrics.classification import macro_f1
from training.loop.predict import Prediction


class Averaged(NamedTuple):
    """Validation rows, averaged over test-time views.

    Attributes:
      views: that new images get.
      logits: float32 [N, C].
      told: a sentence on the scores.
    """

    views: tuple[str, ...]
    logits: np.ndarray
    told: str


def average(
    prediction: Prediction,
    prior: np.ndarray,
    labels: np.ndarray,
    halves: np.ndarray,
    tta: Sequence[str],
) -> Averaged:
    """Averages validation rows over views, and chooses these if asked to.

    Args:
      prediction: of the rows, under all views of `tta`.
      prior: float [C], class frequencies; see `Prediction.mean`.
      labels: int [N].
      halves: int [N], 0 or 1; see `Data.halves`.
      tta: `config.eval.tta`.
    """
    options = view_sets(tta)
    means = [prediction.mean(prior, len(views)) for views in options]

    def score(logits: np.ndarray, rows: np.ndarray | slice = slice(None)):
        found = logits[rows].argmax(axis=1)
        return macro_f1(labels[rows], found, logits.shape[1])

    if AUTO not in tta:
        one = score(prediction.mean(prior, 1))
        score_of_all = score(means[0])
        told = (
            f"validation macro-F1 {one:.4f} with one view, "
            f"{score_of_all:.4f} with TTA ({', '.join(options[0])})"
        )
        if score_of_all < one:
            told += (
                "; these views lower it here: --config.eval.tta=auto --export "
                "takes those that do not"
            )
        return Averaged(options[0], means[0], told)

    def best(rows: np.ndarray | slice = slice(None)) -> int:
        # Of equal ones the first: fewer views cost less.
        return int(np.argmax([score(logits, rows) for logits in means]))

    logits = means[0].copy()
    for half in (0, 1):
        rows = halves == half
        logits[rows] = means[best(~rows)][rows]
    views = options[best()]
    scores = ", ".join(
        f"{score(mean):.4f} with {', '.join(names)}"
        for names, mean in zip(options, means, strict=True)
    )
    return Averaged(
        views,
        logits,
        f"validation macro-F1 {scores}; new images get {', '.join(views)}, "
        f"and each half of the rows what is best on the other half: "
        f"{score(logits):.4f}",
    )
