"""What a PxK batch holds, and that it is a function of its number alone."""

from __future__ import annotations

import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from input_pipeline.pk_sampler import PKSampler
from jax_models import layers

sizes_lists = st.lists(st.integers(1, 9), min_size=2, max_size=12)


def sampler_of(sizes, p, k, *, seed=0, parts=1):
    labels = np.repeat(np.arange(len(sizes)) * 7 + 3, sizes)
    labels = np.random.default_rng(len(labels)).permutation(labels)
    rows = 1000 + np.arange(len(labels), dtype=np.int32)
    return PKSampler(rows, labels, seed, p, k, parts)


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


def test_gradient_accumulation_takes_whole_identities():
    parts, p, k = 3, 6, 4
    sampler = sampler_of([5] * 9, p, k, parts=parts)
    labels, _ = batches_of(sampler, 5)
    for batch in labels:
        assert len(np.unique(batch)) == p
        seen = []
        for index in range(parts):
            part = layers.take_microbatch(
                jnp.asarray(batch), jnp.asarray(index), parts
            )
            part = np.asarray(part)
            groups = part.reshape(p // parts, k)
            assert np.all(groups == groups[:, :1])
            seen += groups[:, 0].tolist()
        assert len(set(seen)) == p


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
    ("sizes", "p", "parts", "message"),
    [
        ([4], 2, 1, r"show 1 identities, and there is nothing to tell apart"),
        ([4] * 7, 9, 1, r"hold 9 identities.*show 7; .*identities=7.*7 x 2"),
        ([4] * 7, 8, 2, r"verify\.identities=6.*6 x 2 = 12"),
        ([4] * 7, 5, 2, r"5 identities cannot be divided into 2 parts"),
    ],
)
def test_refusals_say_what_would_work(sizes, p, parts, message):
    with pytest.raises(UserError, match=message):
        sampler_of(sizes, p, 2, parts=parts)
