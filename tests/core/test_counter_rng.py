"""Hashed random numbers against what independent uniform ones would do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from core import counter_rng

KEY = jax.random.key(3)


def test_they_are_uniform():
    numbers = np.asarray(counter_rng.uniform_table(KEY, 1000, 200)).ravel()
    assert numbers.dtype == np.float32
    assert numbers.min() >= 0 and numbers.max() < 1
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3
    counts = np.bincount((numbers * 4096).astype(int), minlength=4096)
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("key", [0, 1, 2**31 - 1])
def test_every_bit_is_fair(key):
    places = jnp.arange(2**16)
    found = np.asarray(counter_rng.bits(jax.random.key(key), places))
    ones = [np.int64((found >> bit & 1).sum()) for bit in range(32)]
    off = (np.array(ones) - 2**15) / np.sqrt(2**14)
    assert abs(off).max() < 4.5, off


@pytest.mark.parametrize("what", ["place", "first word", "second", "stream"])
def test_a_changed_bit_changes_half_of_all(what):
    words = jax.random.bits(KEY, (500, 2))
    places = jax.random.bits(jax.random.key(9), (500,))

    def of(words, place, stream=0):
        key = jax.random.wrap_key_data(words)
        return counter_rng.bits(key, place, stream)

    before = jax.vmap(of)(words, places)
    for bit in range(32):
        flip = jnp.uint32(1 << bit)
        if what == "place":
            after = jax.vmap(of)(words, places ^ flip)
        elif what == "stream":
            streams = jnp.full(500, flip)
            after = jax.vmap(of)(words, places, streams)
        else:
            column = 0 if what == "first word" else 1
            after = jax.vmap(of)(
                words.at[:, column].set(words[:, column] ^ flip), places
            )
        changed = np.bitwise_count(np.asarray(before ^ after)).mean() / 32
        assert changed == pytest.approx(0.5, abs=0.03), f"bit {bit}"


def test_rows_columns_streams_and_keys_are_independent():
    table = np.asarray(counter_rng.uniform_table(KEY, 300, 400)) - 0.5
    others = [
        (table[1:], table[:-1]),
        (table[:, 1:], table[:, :-1]),
        (table, np.asarray(counter_rng.uniform_table(KEY, 300, 400, 1)) - 0.5),
        (
            table,
            np.asarray(counter_rng.uniform_table(jax.random.key(4), 300, 400))
            - 0.5,
        ),
    ]
    for left, right in others:
        correlation = (left * right).mean() * 12
        assert abs(correlation) < 4.5 / np.sqrt(left.size)


def test_a_number_depends_on_its_counter_alone():
    whole = counter_rng.uniform(KEY, jnp.arange(100))
    part = counter_rng.uniform(KEY, jnp.arange(40, 60))
    np.testing.assert_array_equal(whole[40:60], part)


@pytest.mark.parametrize("bound", [1, 3, 64, 1000, 2**20 + 1])
def test_integers_are_uniform_and_below_the_bound(bound):
    largest = jnp.float32(1 - 2**-24)
    assert counter_rng.integers_below(largest, bound) == bound - 1
    numbers = counter_rng.uniform_table(KEY, 1000, 64)
    found = np.asarray(counter_rng.integers_below(numbers, bound))
    assert found.min() >= 0 and found.max() < bound
    if bound <= 1000:
        counts = np.bincount(found.ravel(), minlength=bound)
        assert bound == 1 or stats.chisquare(counts).pvalue > 1e-3
