from __future__ import annotations

import itertools

import numpy as np
import pytest

from input_pipeline import pipeline, sources
from input_pipeline.augment import Augment


@pytest.fixture(scope="module")
def digits():
    from types import SimpleNamespace

    data = SimpleNamespace(
        root="",
        source="digits",
        submission_id_column="id",
        target_column="target_feature",
    )
    return sources.open_source(data).labelled


def first_batches(images, count, **options):
    settings = {"size": 8, "batch_size": 6, "seed": 3} | options
    rows = settings.pop("rows", np.arange(20))
    with pipeline.train_batches(images, rows, Augment(), **settings) as batches:
        return list(itertools.islice(batches, count))


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_stream_depends_on_seed_and_step_alone(digits, workers):
    whole = first_batches(digits, 7)
    rest = first_batches(digits, 4, workers=workers, start_step=3)
    assert_same(whole[3:], rest)
