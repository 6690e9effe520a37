"""How often each class and each image comes, and that resuming is exact."""

from __future__ import annotations

import hashlib
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import inputs
from core.errors import UserError
from input_pipeline import loader
from input_pipeline.samplers import BalancedSampler, ShuffledSampler
from input_pipeline.sources.base import ArrayExamples
from input_pipeline.transforms.policy import Augment, TrainTransform

balances = st.sampled_from([0.25, 0.5, 0.9, 1.0])
class_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=8)


def sampler_of(sizes, balance, seed=0):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.random.default_rng(len(labels)).permutation(labels)
    rows = 1000 + np.arange(len(labels), dtype=np.int32)
    return BalancedSampler(rows, labels, seed, balance)


def epochs_of(sampler, count):
    """Rows of whole epochs, int [count, N]."""
    length = len(sampler.rows)
    stream = [sampler.row(index) for index in range(count * length)]
    return np.reshape(stream, (count, length))


@settings(deadline=None, max_examples=50)
@given(sizes=class_sizes, seed=st.integers(0, 2**32), epoch=st.integers(0, 99))
def test_unbalanced_every_image_comes_once_an_epoch(sizes, seed, epoch):
    sampler = sampler_of(sizes, 0.0, seed)
    length = len(sampler.rows)
    first = epoch * length
    rows = [sampler.row(index) for index in range(first, first + length)]
    assert sorted(rows) == sampler.rows.tolist()


@settings(deadline=None, max_examples=100)
@given(sizes=class_sizes, balance=balances, seed=st.integers(0, 2**32))
def test_every_epoch_has_its_shares_and_its_length(sizes, balance, seed):
    sampler = sampler_of(sizes, balance, seed)
    due = np.array(sizes) ** (1 - balance)
    due = due / due.sum() * sum(sizes)
    for rows in epochs_of(sampler, 3):
        assert len(rows) == sum(sizes)
        times = np.bincount(rows - 1000, minlength=sum(sizes))
        for label, wanted in enumerate(due):
            own = times[sampler.labels == label]
            assert abs(own.sum() - wanted) < 1 + 1e-9
            assert own.max() - own.min() <= 1


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_shares_and_images_on_average(balance):
    sizes = (3, 7, 40)
    sampler = sampler_of(sizes, balance)
    rows = epochs_of(sampler, 400)
    times = np.bincount(rows.ravel() - 1000) / len(rows)
    due = np.array(sizes) ** (1 - balance)
    due = due / due.sum() * sum(sizes)
    for label, size in enumerate(sizes):
        own = times[sampler.labels == label]
        np.testing.assert_allclose(own.sum(), due[label], rtol=0.01)
        # 400 epochs: a standard error of at most .025 per image.
        np.testing.assert_allclose(own, due[label] / size, atol=0.1)


def test_classes_are_mixed_within_an_epoch():
    sampler = sampler_of((5, 5, 90), 1.0)
    [rows] = epochs_of(sampler, 1)
    labels = sampler.labels[rows - 1000]
    for part in np.split(labels, 4):
        assert np.bincount(part, minlength=3).min() >= 2


def test_epochs_and_seeds_differ():
    one, two = epochs_of(sampler_of((9, 30), 1.0), 2)
    [other] = epochs_of(sampler_of((9, 30), 1.0, seed=1), 1)
    assert (one != two).any() and (one != other).any()


def test_a_worker_has_the_same_order():
    sampler = sampler_of((9, 30), 0.5)
    copy = pickle.loads(pickle.dumps(sampler))
    np.testing.assert_array_equal(epochs_of(copy, 2), epochs_of(sampler, 2))


def stream(count, **options):
    count_images = 30
    labels = (np.arange(count_images) % 10 == 0).astype(np.int32)
    pixels = np.random.default_rng(0).integers(
        0, 256, (count_images, 8, 8, 3), np.uint8
    )
    ids = np.array([str(row) for row in range(count_images)])
    rows, balance = np.arange(2, 30), options.pop("balance", 1.0)
    arguments = {"batch_size": 7, "seed": 3}
    with loader.train_batches(
        ArrayExamples(ids, labels, pixels),
        TrainTransform(Augment(), 8),
        BalancedSampler(rows, labels[rows], 3, balance),
        **(arguments | options),
    ) as batches:
        return list(itertools.islice(batches, count))


def digest(batches):
    found = hashlib.sha256()
    for batch in batches:
        for name in ("image", "label", "weight", "row"):
            found.update(batch[name].tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("start", [3, 7])
def test_a_balanced_stream_goes_on_exactly(start):
    whole = stream(10)
    rest = stream(10 - start, start_step=start)
    assert digest(rest) == digest(whole[start:])
    assert digest(rest) != digest(stream(10 - start))


def test_rare_classes_come_as_often_as_the_others():
    labels = np.concatenate([batch["label"] for batch in stream(40)])
    assert labels.mean() == 0.5  # 10 epochs of 28 positions, 2 images of 1.
    plain = np.concatenate([b["label"] for b in stream(40, balance=0.0)])
    assert plain.mean() == 2 / 28


def test_without_balance_it_is_a_shuffled_sampler():
    one = sampler_of((3, 20), 0.0, seed=5)
    other = ShuffledSampler(one.rows, 5)
    np.testing.assert_array_equal(epochs_of(one, 3), epochs_of(other, 3))


def test_rows_of_hosts_of_a_balanced_stream_are_the_batch_of_one_host():
    whole = stream(4, batch_size=6)
    for local in ([0, 1, 2], [3, 4, 5]):
        part = stream(4, batch_size=6, local_rows=local)
        for batch, own in zip(whole, part, strict=True):
            np.testing.assert_array_equal(own["row"], batch["row"][local])


@pytest.mark.parametrize("balance", [-0.1, 1.5, float("nan")])
def test_a_balance_that_is_none(balance):
    with pytest.raises(UserError, match=r"--config\.data\.balance between 0"):
        stream(1, balance=balance)


def test_recipes_are_unbalanced_unless_they_say_so():
    assert inputs.data().balance == 0.0


def test_runs_begun_before_there_was_a_balance_go_on_exactly():
    batches = stream(12, balance=0.0)
    assert digest(batches)[:16] == "378a88ac9898b204"
