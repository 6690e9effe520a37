"""What an audit reports about pairs: identities, forgeries, doubtful copies."""

from __future__ import annotations

import itertools

import numpy as np

from input_pipeline.sources.base import Source

# Real pictures of an identity: at least so many, in one line of the summary.
STEPS = (0, 1, 2, 4, 8, 16, 32)


def keys(source: Source) -> list[int]:
    """Returns identity and flag of each labelled row, in one number."""
    forged = source.labelled.columns["forged"]
    return (2 * source.labelled.labels + forged).tolist()


def copy_problem(one: int, other: int) -> str:
    """Returns what is wrong with two pictures of the same pixels.

    Args:
      one: of `keys`.
      other: another of them.
    """
    return "two flags" if one // 2 == other // 2 else "two identities"


def summary_lines(source: Source) -> list[str]:
    """Returns how many pictures there are of how many identities.

    Args:
      source: with `columns["forged"]` and perhaps `test_pairs`.
    """
    known, total = source.labelled, len(source.classes)
    forged = known.columns["forged"] != 0
    real = np.bincount(known.labels[~forged], minlength=total)
    fake = np.bincount(known.labels[forged], minlength=total)
    bounds = [*STEPS, np.inf]
    spans = []
    for low, high in itertools.pairwise(bounds):
        count = int(((real >= low) & (real < high)).sum())
        if not count:
            continue
        name = f"{low}" if high - low == 1 else f"{low} to {high - 1:.0f}"
        name = f"{low} or more" if np.isinf(high) else name
        spans.append(f"{count:,} with {name}")
    lines = [
        f"  real pictures of an identity: {', '.join(spans)}; "
        f"{real.max()} at most",
        f"  forged: {forged.sum():,} of {len(forged):,} pictures "
        f"({forged.mean():.1%}), of {(fake > 0).sum():,} identities",
    ]
    if source.groups is not None:
        groups = len(np.unique(source.groups))
        if groups < total:
            lines.append(
                f"  donors join the {total:,} identities to {groups:,} groups, "
                "each in one fold"
            )
    if source.test_pairs is not None:
        pairs = source.test_pairs
        uses = np.bincount(np.concatenate([pairs.first, pairs.second]))
        lines.append(
            f"  to compare: {len(pairs):,} pairs of {len(source.test):,} "
            f"pictures, each in up to {uses.max()}"
        )
    return lines
