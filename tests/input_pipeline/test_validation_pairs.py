"""The list of validation pairs: what is in it, and that it never moves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from input_pipeline.validation_pairs import apportion, validation_pairs
from metrics.verification import KINDS

# Real and forged pictures of each identity.
people = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=2, max_size=9
).filter(
    lambda p: any(real >= 2 for real, _ in p) and sum(r > 0 for r, _ in p) > 1
)


def pictures_of(people):
    """Ids, identities and flags of pictures."""
    found = [
        (f"{who:02d}/{n}.jpg", who, int(n >= real))
        for who, (real, forged) in enumerate(people)
        for n in range(real + forged)
    ]
    ids, identity, forged = zip(*found, strict=True)
    return np.array(ids), np.array(identity), np.array(forged)


def pairs_of(people, seed=0, **options):
    ids, identity, forged = pictures_of(people)
    rows = np.arange(len(ids))
    return validation_pairs(ids, identity, forged, rows, seed, **options)


def all_pairs(people):
    """Every pair there is, by kind, the slow way."""
    _, identity, forged = pictures_of(people)
    found = {name: set() for name in KINDS}
    for a, b in itertools.combinations(range(len(identity)), 2):
        fakes = int(forged[a] + forged[b])
        if identity[a] != identity[b]:
            if not fakes:
                found["other"].add((a, b))
        else:
            found[("same", "one_forged", "both_forged")[fakes]].add((a, b))
    return found


@settings(deadline=None, max_examples=100)
@given(people, st.integers(0, 2**40))
def test_pairs_are_what_their_kinds_say(people, seed):
    pairs = pairs_of(people, seed)
    there = all_pairs(people)
    kinds = [KINDS[kind] for kind in pairs.kind]
    drawn = list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert len(set(drawn)) == len(drawn)
    assert len(set(pairs.ids.tolist())) == len(drawn)
    for kind, pair in zip(kinds, drawn, strict=True):
        assert pair in there[kind]


@settings(deadline=None, max_examples=100)
@given(people, st.integers(1, 6))
def test_positives_are_capped_and_negatives_as_many(people, cap):
    pairs = pairs_of(people, pairs_per_identity=cap)
    there = all_pairs(people)
    wanted = sum(min(cap, r * (r - 1) // 2) for r, _ in people)
    assert np.sum(pairs.kind == 0) == wanted
    negatives = sum(len(there[kind]) for kind in KINDS[1:])
    assert np.sum(pairs.kind != 0) == min(wanted, negatives)


@settings(deadline=None, max_examples=50)
@given(people, st.randoms(use_true_random=False))
def test_neither_order_nor_numbers_change_the_list(people, random):
    ids, identity, forged = pictures_of(people)
    rows = np.arange(len(ids))
    first = validation_pairs(ids, identity, forged, rows, 5)
    order = np.array(random.sample(range(len(ids)), len(ids)))
    renamed = np.array(random.sample(range(50), len(people)))[identity]
    # Rows that train, in between.
    more = np.concatenate([ids[order], ["zz/0.jpg", "a/0.jpg"]])
    second = validation_pairs(
        more,
        np.append(renamed[order], [99, 98]),
        np.append(forged[order], [0, 1]),
        np.random.default_rng(0).permutation(len(ids)),
        5,
    )
    assert first.ids.tolist() == second.ids.tolist()
    assert first.kind.tolist() == second.kind.tolist()
    assert first.hash(ids) == second.hash(more)


def test_kinds_have_their_shares():
    pairs = pairs_of([(8, 4)] * 20, negative_shares=(0.5, 0.3, 0.2))
    assert np.bincount(pairs.kind).tolist() == [100, 50, 30, 20]
    pairs = pairs_of([(8, 0)] * 20)
    assert np.bincount(pairs.kind).tolist() == [100, 100]
    pairs = pairs_of([(8, 1)] * 20, negative_shares=(0.0, 0.5, 0.5))
    assert np.bincount(pairs.kind).tolist() == [100, 0, 100]


def test_another_seed_or_another_picture_gives_another_list():
    people = [(5, 2)] * 6
    ids, _, _ = pictures_of(people)
    pairs = pairs_of(people)
    assert pairs.hash(ids) == pairs_of(people).hash(ids)
    assert pairs.hash(ids) != pairs_of(people, 1).hash(ids)
    more = [*people[:-1], (6, 2)]
    assert pairs.hash(ids) != pairs_of(more).hash(pictures_of(more)[0])


def test_a_person_with_many_pictures_gives_no_more_pairs():
    pairs = pairs_of([(1000, 300), (3, 0), (3, 0), (1, 0)])
    assert np.sum(pairs.kind == 0) == 5 + 3 + 3
    others = pairs.kind == 1
    assert others.any()
    many = (pairs.first[others] < 1000).sum()
    assert many < others.sum()


def test_no_positive_or_no_negative_is_told():
    with pytest.raises(UserError, match=r"none of the 3 ident.* two real"):
        pairs_of([(1, 4), (1, 0), (0, 3)])
    with pytest.raises(UserError, match="no negative pair"):
        pairs_of([(4, 0), (0, 0)])


@settings(deadline=None)
@given(
    st.integers(0, 99),
    st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 60)), min_size=1, max_size=5
    ),
)
def test_apportion_gives_all_that_is_wanted_and_there(wanted, kinds):
    shares, at_hand = zip(*kinds, strict=True)
    counts = apportion(wanted, shares, at_hand)
    there = sum(n for share, n in kinds if share > 0)
    assert sum(counts) == min(wanted, there)
    for count, (share, most) in zip(counts, kinds, strict=True):
        assert 0 <= count <= (most if share > 0 else 0)
