"""Retrieval beside open-metric-learning, scikit-learn and sums by hand."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from metrics import retrieval, verification

GOLDENS = dict(np.load(Path(__file__).parent / "goldens/verification.npz"))


def ranking(hits, relevant):
    return retrieval.Ranking(np.array(hits, bool), np.array(relevant))


def test_scores_are_open_metric_learnings():
    embeddings, labels, query = (
        GOLDENS[f"retrieval {name}"]
        for name in ("embeddings", "labels", "query")
    )
    rows, _ = retrieval.nearest(embeddings[query], embeddings[~query], 10)
    found = retrieval.rank(rows, labels[query], labels[~query])
    scores = retrieval.scores(found, (1, 3, 5, 10))
    assert scores["queries"] == query.sum()
    for k in (1, 3, 5, 10):
        for name, ours in (
            ("cmc", f"cmc_{k}"),
            ("precision", f"precision_{k}_oml"),
            ("map", f"map_{k}_oml"),
        ):
            expected = float(GOLDENS[f"retrieval {name} {k}"])
            assert scores[ours] == pytest.approx(expected, rel=1e-6), ours


def test_fnmr_at_fmr_is_open_metric_learnings():
    near, far = GOLDENS["pairs near"], GOLDENS["pairs far"]
    scores = -np.concatenate([near, far])
    positive = np.arange(len(scores)) < len(near)
    for rate, expected in zip(
        GOLDENS["pairs rates"], GOLDENS["pairs fnmr"], strict=True
    ):
        found = verification.fnmr_at_fmr(scores, positive, rate)
        assert found == pytest.approx(expected, rel=1e-6)


def test_both_definitions_by_hand():
    # A hit at rank 1 of five relevant ones; hits at 2 and 3 of two.
    found = ranking([[1, 0, 0, 0], [0, 1, 1, 0]], [5, 2])
    np.testing.assert_allclose(retrieval.cmc(found, 1), [1, 0])
    np.testing.assert_allclose(retrieval.precision(found, 4), [1 / 4, 2 / 4])
    np.testing.assert_allclose(
        retrieval.precision(found, 4, oml=True), [1 / 4, 1]
    )
    second = (1 / 2 + 2 / 3) / 2
    np.testing.assert_allclose(
        retrieval.average_precision(found, 4), [1 / 4, second]
    )
    np.testing.assert_allclose(
        retrieval.average_precision(found, 4, oml=True), [1, second]
    )


def test_queries_without_an_answer_are_left_out_and_counted():
    labels = np.array([0, 0, 1, -1, -1])
    embeddings = np.arange(5, dtype=np.float32)[:, None]
    own = np.arange(5)
    rows, _ = retrieval.nearest(embeddings, embeddings, 3, own)
    found = retrieval.rank(rows, labels, labels, own)
    # The single picture, and the two that match nothing.
    assert retrieval.answerable(found).tolist() == [True, True, *[False] * 3]
    scores = retrieval.scores(found, (1,))
    assert scores["queries"] == 2
    assert scores["unanswerable"] == 3
    assert scores["cmc_1"] == 1.0
    alone = retrieval.rank(rows[2:], labels[2:], labels, own[2:])
    assert np.isnan(retrieval.scores(alone, (1,))["map_1"])


@settings(deadline=None)
@given(
    st.integers(1, 30), st.integers(1, 30), st.integers(1, 12), st.booleans()
)
def test_nearest_are_scikit_learns(queries, gallery, k, itself):
    rng = np.random.default_rng(queries * 31 + gallery)
    stored = rng.standard_normal((gallery, 4)).astype(np.float32)
    own = None
    if itself:
        own = rng.integers(-1, gallery, queries)
    asked = rng.standard_normal((queries, 4)).astype(np.float32)
    rows, distances = retrieval.nearest(asked, stored, k, own)
    finder = NearestNeighbors(algorithm="brute").fit(stored)
    expected = finder.kneighbors(asked, gallery)
    for number in range(queries):
        pairs = [
            (row, distance)
            for distance, row in zip(
                expected[0][number], expected[1][number], strict=True
            )
            if own is None or row != own[number]
        ][:k]
        count = len(pairs)
        assert rows[number, :count].tolist() == [row for row, _ in pairs]
        np.testing.assert_allclose(
            distances[number, :count], [d for _, d in pairs], rtol=1e-5
        )
        assert (rows[number, count:] == -1).all()
        assert np.isinf(distances[number, count:]).all()


def test_a_copy_is_at_distance_zero():
    rng = np.random.default_rng(0)
    stored = 100 + rng.standard_normal((50, 16)).astype(np.float32)
    rows, distances = retrieval.nearest(stored, stored, 1)
    assert rows[:, 0].tolist() == list(range(50))
    assert (distances == 0).all()


def test_an_empty_gallery_has_no_answers():
    asked = np.zeros((2, 3), np.float32)
    rows, _ = retrieval.nearest(asked, asked[:0], 4)
    found = retrieval.rank(rows, np.zeros(2, int), np.zeros(0, int))
    assert retrieval.scores(found, (4,))["unanswerable"] == 2


def test_more_than_was_retrieved_cannot_be_scored():
    with pytest.raises(ValueError, match="k is 3, but 2 were retrieved"):
        retrieval.cmc(ranking([[1, 0]], [1]), 3)


def test_memory_does_not_grow_with_the_square():
    """6,000 x 6,000 distances would be 144 MB beside 144 MB of indices."""
    rng = np.random.default_rng(0)
    stored = rng.standard_normal((6000, 8)).astype(np.float32)
    tracemalloc.start()
    retrieval.nearest(stored, stored, 5, np.arange(6000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6
