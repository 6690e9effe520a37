"""Meta-features are where the docstring says."""

import numpy as np
from made_up_runs import made_up, make_calibrated
from scipy import special


def test_features_are_where_the_docstring_says():
    logits, labels = made_up(20, 4, 3, seed=0)
    inputs = make_calibrated(logits, labels)
    probabilities = inputs.probabilities
    found = inputs.features
    assert found.shape == (20, 3 * 4 + 3 * 3 + 2)
    log_probs, entropy, top, margin, rest = np.split(
        found, [12, 15, 18, 21], axis=1
    )
    np.testing.assert_allclose(
        log_probs[:, 4 * 1 + 2], np.log(probabilities[1, :, 2]), rtol=1e-5
    )
    np.testing.assert_allclose(
        entropy[:, 2], special.entr(probabilities[2]).sum(axis=1), rtol=1e-4
    )
    ordered = np.sort(probabilities[0], axis=1)
    np.testing.assert_allclose(top[:, 0], ordered[:, -1])
    np.testing.assert_allclose(
        margin[:, 0], ordered[:, -1] - ordered[:, -2], rtol=1e-5
    )
    votes = probabilities.argmax(axis=2)
    agreement = [np.bincount(row).max() / 3 for row in votes.T]
    np.testing.assert_allclose(rest[:, 0], agreement, rtol=1e-6)
    assert (rest[:, 1] > -1e-6).all()  # Disagreement in nats.
