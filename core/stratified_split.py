"""Dividing examples evenly: by class, whatever the order of the rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def split(
    ids: Sequence[str], labels: np.ndarray, parts: int, seed: int
) -> np.ndarray:
    """Divides the examples of each class evenly.

    Within a class the examples are put in the order of a keyed hash of their
    ids and dealt out in turn, so the answer depends on the set of (id, label)
    pairs and never on the order of the rows. The deal goes on from class to
    class, so that sizes differ by one at most.

    Args:
      ids: str `[N]`, unique.
      labels: int `[N]`, class indices.
      parts: how many.
      seed: another seed gives another division.

    Returns:
      int32 `[N]`, values 0 to parts - 1.
    """
    keys = [_hash_order(seed, name) for name in ids]
    order = sorted(range(len(ids)), key=lambda row: (labels[row], keys[row]))
    found = np.empty(len(ids), np.int32)
    found[order] = np.arange(len(ids)) % parts
    return found


def split_groups(
    groups: Sequence[str], labels: np.ndarray, parts: int, seed: int
) -> np.ndarray:
    """Divides examples so that those of one group stay together.

    Greedily, from the largest group to the smallest, each goes where the
    fewest examples of its classes are, relative to the size of each class:
    where the sum over parts and classes of n^2 / (size of the class) grows
    least, the whole counting as one class more. Groups of one size are taken
    in the order of a keyed hash, so the answer depends on which (group, label)
    pairs there are and how often, and never on the order of the rows.

    Args:
      groups: str `[N]`; at least `parts` different ones, or some stay empty.
      labels: int `[N]`, class indices.
      parts: how many.
      seed: another seed gives another division.

    Returns:
      int32 `[N]`, values 0 to parts - 1.
    """
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    classes, class_of = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(names), len(classes) + 1))  # the last one: all
    np.add.at(counts, (group_of, class_of), 1)
    counts[:, -1] = counts.sum(axis=1)
    share = counts / counts.sum(axis=0)  # of each class, in each group
    order = sorted(
        range(len(names)),
        key=lambda row: (-counts[row, -1], _hash_order(seed, names[row])),
    )
    held = np.zeros((parts, len(classes) + 1))
    part_of = np.empty(len(names), np.int32)
    for row in order:
        part_of[row] = np.argmin(held @ share[row])
        held[part_of[row]] += counts[row]
    return part_of[group_of]


def _hash_order(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{name}".encode()).digest()
