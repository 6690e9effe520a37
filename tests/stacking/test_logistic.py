"""The regression is that of scikit-learn, around the models' mean."""

import numpy as np
from made_up_runs import made_up, make_calibrated
from sklearn import linear_model

from stacking import (
    logistic,
)


def test_regression_is_scikit_learns():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(300, 6)).astype(np.float32)
    labels = (inputs[:, 0] + 0.5 * rng.normal(size=300) > 0) + 2 * (
        inputs[:, 1] > 0.3
    )
    nothing = np.zeros((300, 4), np.float32)
    ours = logistic.fit(inputs, nothing, labels, 0.03, np.ones(300))
    scaled = (inputs - inputs.mean(axis=0)) / inputs.std(axis=0)
    theirs = linear_model.LogisticRegression(C=1 / (0.03 * 300), tol=1e-8)
    theirs.fit(scaled, labels)
    np.testing.assert_allclose(
        ours.predict(inputs, nothing), theirs.predict_proba(scaled), atol=5e-3
    )


def test_regression_without_evidence_answers_the_mean():
    logits, labels = made_up(60, 4, 3, seed=0)
    inputs = make_calibrated(logits, labels)
    start = np.log(inputs.base)
    fitted = logistic.fit(inputs.features, start, labels, 1e6, np.ones(60))
    found = fitted.predict(inputs.features, start)
    # The bias is not penalised: it may still shift whole classes.
    agree = found.argmax(axis=1) == inputs.base.argmax(axis=1)
    assert agree.mean() > 0.9
    assert np.abs(fitted.weights).max() < 1e-5
