"""What a PxK batch holds, and that it is a function of its number alone."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from input_pipeline.pk_sampler import PKSampler

sizes_lists = st.lists(st.integers(1, 9), min_size=2, max_size=12)


def sampler_of(sizes, p, k, *, seed=0):
    labels = np.repeat(np.arange(len(sizes)) * 7 + 3, sizes)
    labels = np.random.default_rng(len(labels)).permutation(labels)
    rows = 1000 + np.arange(len(labels), dtype=np.int32)
    return PKSampler(rows, labels, seed, p, k)


def batches_of(sampler, count, start=0):
    """Labels and rows of whole batches: int [count, P * K] each."""
    size = sampler.identities * sampler.pictures
    first = start * size
    rows = [sampler.row(first + n) for n in range(count * size)]
    rows = np.reshape(rows, (count, size))
    return sampler.labels[rows - 1000], rows


@settings(deadline=None, max_examples=80)
@given(sizes_lists, st.integers(2, 6), st.integers(1, 5), st.data())
def test_a_batch_holds_p_identities_with_k_pictures(sizes, p, k, data):
    p = min(p, len(sizes))
    sampler = sampler_of(sizes, p, k, seed=data.draw(st.integers(0, 2**40)))
    labels, rows = batches_of(sampler, 4, data.draw(st.integers(0, 999)))
    count_of = dict(
        zip(*np.unique(sampler.labels, return_counts=True), strict=True)
    )
    for batch, pictures in zip(labels, rows, strict=True):
        groups = batch.reshape(p, k)
        assert np.all(groups == groups[:, :1])
        assert len(np.unique(groups[:, 0])) == p
        for label, own in zip(
            groups[:, 0], pictures.reshape(p, k), strict=True
        ):
            assert len(np.unique(own)) == min(k, count_of[label])


@settings(deadline=None, max_examples=50)
@given(sizes_lists, st.integers(2, 6), st.integers(0, 50))
def test_every_epoch_shows_every_identity(sizes, p, epoch):
    p = min(p, len(sizes))
    sampler = sampler_of(sizes, p, 2)
    count = sampler.batches_per_epoch
    assert count == -(-len(sizes) // p)
    labels, _ = batches_of(sampler, count, epoch * count)
    shown, times = np.unique(labels[:, ::2], return_counts=True)
    assert len(shown) == len(sizes)
    # Only the last batch repeats some.
    assert times.sum() - len(shown) == count * p - len(sizes)
    assert times.max() <= 2


def test_rows_depend_on_seed_and_position_alone():
    one = sampler_of([3, 4, 5, 6, 7], 3, 2, seed=11)
    copy = pickle.loads(pickle.dumps(one))
    ahead = [copy.row(n) for n in reversed(range(120))][::-1]
    assert ahead == [one.row(n) for n in range(120)]
    other = sampler_of([3, 4, 5, 6, 7], 3, 2, seed=12)
    assert ahead != [other.row(n) for n in range(120)]


def test_all_pictures_of_an_identity_come_equally_often():
    sampler = sampler_of([2, 3, 8], 3, 2)
    _, rows = batches_of(sampler, 3000)
    times = np.bincount(rows.ravel() - 1000)
    for label in np.unique(sampler.labels):
        own = times[sampler.labels == label]
        np.testing.assert_allclose(own / own.mean(), 1, atol=0.1)


def test_identities_of_an_epoch_come_in_a_new_order():
    sampler = sampler_of([2] * 40, 10, 1)
    labels, _ = batches_of(sampler, 8)
    assert labels[:4].ravel().tolist() != labels[4:].ravel().tolist()
    # Companions change, or the hardest negatives never would.
    together = [set(batch.tolist()) for batch in labels]
    assert not any(one in together[4:] for one in together[:4])


@pytest.mark.parametrize(
    ("sizes", "p", "message"),
    [
        (
            [4],
            2,
            r"show 1 of the two identities or more",
        ),
        ([4] * 7, 9, r"hold 9 identities.*show 7; .*identities=7.*7 x 2"),
    ],
)
def test_refusals_say_what_would_work(sizes, p, message):
    with pytest.raises(UserError, match=message):
        sampler_of(sizes, p, 2)
