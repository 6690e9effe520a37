"""The fixed list of pairs that a verification is scored on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Integer, Shaped

from core.errors import UserError
from metrics.verification import KINDS
from run_folder.pair_files import PairList

SAME, OTHER, ONE_FORGED, BOTH_FORGED = range(len(KINDS))
NEGATIVES = (OTHER, ONE_FORGED, BOTH_FORGED)

# Of pairs of an identity; with two rows each, the lower first.
Pairs = Int[np.ndarray, "P 2"]


def validation_pairs(
    ids: Shaped[np.ndarray, " N"],
    identity: Integer[np.ndarray, " N"],
    forged: Integer[np.ndarray, " N"],
    rows: Integer[np.ndarray, " R"],
    seed: int,
    *,
    pairs_per_identity: int = 5,
    negative_shares: Sequence[float] = (0.5, 0.3, 0.2),
) -> PairList:
    """Draws pairs of held-out pictures, of every kind in fixed shares.

    Positives are pairs of real pictures of one identity, at most
    `pairs_per_identity` of each. There are as many negatives, in the shares
    given: two identities, both pictures real; one identity with one picture
    forged; with both. No identity gives more pairs of a kind with forgeries
    than of positives, unless there are too few. What one kind lacks goes to
    the others, in proportion to their shares.

    The answer depends on the set of pictures and on the seed, never on the
    order of the rows or on the numbers of the identities.

    Args:
      ids: of all pictures, unique.
      identity: of each picture.
      forged: 1 for a forged picture, 0 for a real one.
      rows: those to make pairs of.
      seed: another seed gives other pairs.
      pairs_per_identity: the most positives of one identity.
      negative_shares: of the kinds of negatives, in the order of `KINDS`.

    Returns:
      The pairs, positives first, with their kinds; a pair's id is the ids of
      both pictures with a bar between.

    Raises:
      UserError: there is no positive pair, or no negative one.
    """
    rows = np.asarray(rows)[np.argsort(np.asarray(ids)[rows], kind="stable")]
    _, first_of, number = np.unique(
        identity[rows], return_index=True, return_inverse=True
    )
    # Identities in the order of their first picture's id.
    number = np.argsort(np.argsort(first_of))[number]
    by_identity = np.split(
        np.argsort(number, kind="stable"), np.cumsum(np.bincount(number))[:-1]
    )
    fake = np.asarray(forged)[rows] != 0
    rng = np.random.Generator(np.random.Philox(key=seed))
    same = _capped(by_identity, fake, SAME, pairs_per_identity, rng)
    if not len(same):
        raise UserError(
            f"none of the {len(by_identity)} identities that validate has two "
            "real pictures, so there is no positive pair; set "
            "--config.data.folds lower, or --config.data.fold to another one"
        )
    found = [(SAME, same)]
    for kind, pairs in _negatives(
        by_identity, fake, len(same), pairs_per_identity, negative_shares, rng
    ):
        found.append((kind, pairs))
    kinds = np.concatenate([np.full(len(p), kind) for kind, p in found])
    pairs = rows[np.concatenate([p for _, p in found])]
    first, second = pairs.T.astype(np.int32)
    names = [
        f"{one}|{other}"
        for one, other in zip(ids[first], ids[second], strict=True)
    ]
    return PairList(np.array(names), first, second, kinds.astype(np.int8))


def _negatives(
    by_identity: Sequence[np.ndarray],
    fake: Bool[np.ndarray, " R"],
    wanted: int,
    cap: int,
    shares: Sequence[float],
    rng: np.random.Generator,
) -> list[tuple[int, Pairs]]:
    """Negatives by kind, `wanted` in all as far as there are."""
    real = [rows[~fake[rows]] for rows in by_identity]
    real = [rows for rows in real if len(rows)]
    sizes = np.array([len(rows) for rows in real])
    others = (sizes.sum() ** 2 - (sizes**2).sum()) // 2
    capped = {
        kind: _capped(by_identity, fake, kind, cap, rng)
        for kind in (ONE_FORGED, BOTH_FORGED)
    }
    at_hand = [int(others), *(len(pairs) for pairs in capped.values())]
    counts = apportion(wanted, shares, at_hand)
    if sum(counts) < wanted:  # Only where there are hardly any others.
        capped = {
            kind: _capped(by_identity, fake, kind, None, rng) for kind in capped
        }
        at_hand[1:] = (len(pairs) for pairs in capped.values())
        counts = apportion(wanted, shares, at_hand)
    if not sum(counts):
        raise UserError(
            "the rows that validate give no negative pair: one identity alone "
            "and no forgery, or shares of 0; set --config.data.folds lower, "
            "or --config.verify.negative_shares=(.5,.3,.2)"
        )
    found = [(OTHER, _of_others(real, counts[0], rng))]
    for (kind, pairs), count in zip(capped.items(), counts[1:], strict=True):
        chosen = rng.choice(len(pairs), count, replace=False)
        found.append((kind, pairs[np.sort(chosen)]))
    return found


def apportion(
    wanted: int, shares: Sequence[float], at_hand: Sequence[int]
) -> list[int]:
    """Divides a number by shares; what one lacks goes to the others.

    Args:
      wanted: the sum, if there is enough.
      shares: not negative; a share of 0 gets nothing.
      at_hand: the most that each can have.

    Returns:
      Whole numbers, as many as shares.
    """
    most, counts = np.asarray(at_hand), np.zeros(len(shares), int)
    while (left := wanted - counts.sum()) > 0:
        still_open = np.where(counts < most, shares, 0.0)
        if not still_open.any():
            break
        exact = left * still_open / still_open.sum()
        extra = np.diff(np.rint(np.cumsum(exact)).astype(int), prepend=0)
        counts = np.minimum(counts + extra, most)
    return counts.tolist()


def _capped(
    by_identity: Sequence[np.ndarray],
    fake: Bool[np.ndarray, " R"],
    kind: int,
    cap: int | None,
    rng: np.random.Generator,
) -> Pairs:
    """At most `cap` pairs of one kind from each identity, drawn."""
    found = [np.zeros((0, 2), int)]
    for rows in by_identity:
        real, forged = rows[~fake[rows]], rows[fake[rows]]
        if kind == ONE_FORGED:
            count = len(real) * len(forged)
        else:
            real = forged = real if kind == SAME else forged
            count = len(real) * (len(real) - 1) // 2
        if not count:
            continue
        most = count if cap is None else min(cap, count)
        index = np.sort(rng.choice(count, most, replace=False))
        if kind == ONE_FORGED:
            one, other = np.divmod(index, len(forged))
        else:
            one, other = _triangle(index)
        pairs = np.stack([real[one], forged[other]], axis=1)
        found.append(np.sort(pairs, axis=1))
    return np.concatenate(found)


def _triangle(
    index: Int[np.ndarray, " n"],
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """The pairs (0, 1), (0, 2), (1, 2), (0, 3), … by their number."""
    high = ((1 + np.sqrt(1 + 8.0 * index)) / 2).astype(int)
    # The root may be off by one where it is a whole number.
    high -= high * (high - 1) // 2 > index
    high += high * (high + 1) // 2 <= index
    return index - high * (high - 1) // 2, high


def _of_others(
    real: Sequence[np.ndarray], wanted: int, rng: np.random.Generator
) -> Pairs:
    """Different pairs of real pictures of two identities each.

    Two identities are drawn, then a picture of each: identities with many
    pictures are in no more pairs than others.
    """
    found: dict[tuple[int, int], None] = {}
    tries = 20 * wanted
    while len(found) < wanted and tries > 0:
        tries -= 1
        one, other = rng.choice(len(real), 2, replace=False)
        pair = rng.choice(real[one]), rng.choice(real[other])
        found.setdefault((int(min(pair)), int(max(pair))))
    if len(found) < wanted:  # Nearly all there are.
        for one in range(len(real)):
            for other in range(one):
                for a in real[one]:
                    for b in real[other]:
                        if len(found) < wanted:
                            found.setdefault((int(min(a, b)), int(max(a, b))))
    return np.array(list(found), int).reshape(-1, 2)
