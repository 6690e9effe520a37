"""Fixtures of the stacking tests; see `made_up_runs` for what is in them."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_runs import CLASSES, made_up, write_run
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True, scope="session")
def one_blas_thread():
    """As the command does: small sums are slower on two threads."""
    with threadpool_limits(limits=1, user_api="blas"):
        yield


@pytest.fixture
def three_runs(tmp_path):
    """Three models, 160 validation and 60 unlabelled test rows."""
    logits, labels = made_up(220, len(CLASSES), 3, seed=0)
    unknown = np.full(60, -1, np.int32)
    for index, name in enumerate(("first", "second", "third")):
        write_run(
            tmp_path / "runs" / name,
            (logits[index, :160], labels[:160]),
            (logits[index, 160:], unknown),
        )
    return tmp_path / "runs"
