"""The pairs of digits: whose they are, and what is forged."""

from __future__ import annotations

import numpy as np

from input_pipeline.sources import open_source
from metrics.verification import KINDS


def test_digit_pairs(data_config):
    source = open_source(data_config(source="digit_pairs"))
    labels = source.labelled.labels
    assert set(labels[source.given_folds == 0].tolist()) == {7, 8, 9}
    assert set(labels[source.given_folds == 1].tolist()) == set(range(7))
    assert set(source.test.labels.tolist()) == {7, 8, 9}
    assert not set(source.labelled.ids.tolist()) & set(source.test.ids.tolist())
    counts = np.bincount(source.test_pairs.kind, minlength=len(KINDS))
    assert counts.tolist() == [300, 150, 90, 60]
    # The lower half of a forgery is another digit's, of the same side.
    by_pixels = {
        side: {
            half.tobytes(): label
            for half, label in zip(
                source.labelled.pixels[chosen, 4:],
                labels[chosen],
                strict=True,
            )
        }
        for side in (0, 1)
        for chosen in [
            (source.given_folds == side)
            & (source.labelled.columns["forged"] == 0)
        ]
    }
    forged = np.flatnonzero(source.labelled.columns["forged"])
    assert 0.15 < len(forged) / len(labels) < 0.25
    for row in forged:
        side = source.given_folds[row]
        lower = source.labelled.pixels[row, 4:].tobytes()
        assert by_pixels[side][lower] != labels[row]
