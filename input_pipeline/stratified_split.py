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


def _hash_order(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{name}".encode()).digest()
