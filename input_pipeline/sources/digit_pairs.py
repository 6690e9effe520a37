"""Pairs of scikit-learn's digits, some forged: what verification demos."""

from __future__ import annotations

from typing import Any

import numpy as np

from input_pipeline.sources.base import ArrayExamples, Source, fingerprint
from input_pipeline.sources.digits import open_digits
from input_pipeline.validation_pairs import validation_pairs

# Of these the training sees nothing; they validate and are to be compared.
HELD_OUT = (7, 8, 9)
FORGED_SHARE = 0.25  # for each real picture
PAIRS_PER_DIGIT = 100
SEED = 42


def open_digit_pairs(data: Any) -> Source:
    """Opens the digits as identities: 0 to 6 train, 7 to 9 validate.

    A forgery has the upper half of its digit and the lower half of a donor,
    another digit on the same side. The test pairs are of digits 7 to 9, of
    pictures that are in no fold; their kinds are known.

    Args:
      data: `config.data`; the submission's column names.
    """
    digits = open_digits(data)
    labelled = _with_forgeries("train", digits.labelled)
    held_out = np.isin(digits.test.labels, HELD_OUT)
    test = _with_forgeries(
        "test",
        ArrayExamples(
            digits.test.ids[held_out],
            digits.test.labels[held_out],
            digits.test.pixels[held_out],
        ),
    )
    pairs = validation_pairs(
        test.ids,
        test.labels,
        test.columns["forged"],
        np.arange(len(test)),
        SEED,
        pairs_per_identity=PAIRS_PER_DIGIT,
    )
    return Source(
        name="digit_pairs",
        labelled=labelled,
        test=test,
        test_pairs=pairs,
        classes=digits.classes,
        sample_submission=None,
        id_column=data.submission_id_column,
        target_column=data.target_column,
        fingerprint=fingerprint(
            labelled.ids, labelled.labels, [labelled.pixels.sum()]
        ),
        groups=np.where(np.isin(labelled.labels, HELD_OUT), "val", "train"),
        given_folds=np.where(np.isin(labelled.labels, HELD_OUT), 0, 1).astype(
            np.int32
        ),
    )


def _with_forgeries(split: str, real: ArrayExamples) -> ArrayExamples:
    """The real pictures, then forgeries made of halves of them."""
    rng = np.random.Generator(np.random.Philox(key=SEED))
    pixels, labels, ids = [], [], []
    for digit in np.unique(real.labels):
        own = np.flatnonzero(real.labels == digit)
        side = np.isin(real.labels, HELD_OUT) == (digit in HELD_OUT)
        donors = np.flatnonzero(side & (real.labels != digit))
        count = round(FORGED_SHARE * len(own))
        upper = rng.choice(own, count, replace=False)
        lower = rng.choice(donors, count, replace=False)
        half = real.pixels.shape[1] // 2
        pixels.append(
            np.concatenate(
                [real.pixels[upper, :half], real.pixels[lower, half:]], axis=1
            )
        )
        labels.append(np.full(count, digit, np.int32))
        ids += [f"forged-{split}-{digit}-{n:03d}" for n in range(count)]
    forged = np.repeat([0, 1], [len(real), len(ids)]).astype(np.int32)
    return ArrayExamples(
        np.concatenate([real.ids, ids]),
        np.concatenate([real.labels, *labels]),
        np.concatenate([real.pixels, *pixels]),
        columns={"forged": forged},
    )
