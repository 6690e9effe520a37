"""The best model alone: what a stack of it and others must not fall below.

Macro-F1 of a few hundred rows hangs on few of them, too few to tell whether a
fitted combination is worse than one of its models. Log-loss changes in every
row and tells: a weak model in a vote costs probability in all rows, long
before it costs a right answer.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int

from stacking import calibration
from stacking.vote_score import VoteScore


def best_member(
    probabilities: Float32[np.ndarray, "M N C"],
    labels: Int[np.ndarray, " N"],
) -> int:
    """Number of the model with the best macro-F1; ties go by log-loss."""
    score = VoteScore(probabilities, labels)
    return int(np.argmax([score(one) for one in np.eye(len(probabilities))]))


def is_likelier(
    probabilities: Float32[np.ndarray, "N C"],
    rival: Float32[np.ndarray, "N C"],
    labels: Int[np.ndarray, " N"],
) -> bool:
    """Whether the log-loss is lower than the rival's by a standard error.

    The standard error of the mean difference over rows, both calibrated.
    """
    rows = np.arange(len(labels))
    gain = (
        calibration.log_probabilities(probabilities)[rows, labels]
        - calibration.log_probabilities(rival)[rows, labels]
    )
    return bool(gain.mean() > gain.std() / np.sqrt(len(labels)))
