"""Pairs for a contact sheet: a few of each kind, as a model sees them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from core.errors import UserError
from input_pipeline.decoding import BadImage
from input_pipeline.sources.base import Examples, Source
from input_pipeline.transforms.views import AlignedTransform
from input_pipeline.validation_pairs import validation_pairs
from metrics.verification import KINDS
from run_folder.pair_files import PairList

# A line of pictures, two of each pair, and their captions.
Line = tuple[str, list[np.ndarray], list[str]]


def pair_lines(
    source: Source, size: int, columns: int, seed: int
) -> Iterator[Line]:
    """Yields a line of pairs of each kind, then one of pairs to compare.

    Args:
      source: with identities and flags.
      size: side of the pictures in pixels.
      columns: pictures of a line.
      seed: of the choice.
    """
    known, each = source.labelled, columns // 2
    try:
        pairs = validation_pairs(
            known.ids,
            known.labels,
            known.columns["forged"],
            np.arange(len(known)),
            seed,
            negative_shares=(1.0, 1.0, 1.0),
        )
    except UserError:
        pass  # Without negatives: a training will say so.
    else:
        for number, name in enumerate(KINDS):
            rows = np.flatnonzero(pairs.kind == number)
            title = f"pairs: {name.replace('_', ' ')}"
            yield _line(title, known, pairs, rows, size, each, seed)
    if source.test_pairs is not None:
        rows = np.arange(len(source.test_pairs))
        yield _line(
            "pairs to compare",
            source.test,
            source.test_pairs,
            rows,
            size,
            each,
            seed,
        )


def _line(
    title: str,
    examples: Examples,
    pairs: PairList,
    rows: np.ndarray,
    size: int,
    count: int,
    seed: int,
) -> Line:
    """Some of the pairs, drawn."""
    rng = np.random.default_rng(seed)
    transform = AlignedTransform(size)
    images, captions = [], []
    for pair in rng.permutation(rows)[:count]:
        for row in (pairs.first[pair], pairs.second[pair]):
            try:
                image = transform(examples.read(int(row)))["image"][0]
                text = str(examples.ids[row])
            except BadImage:
                image = np.full((size, size, 3), 255, np.uint8)
                text = f"bad: {examples.ids[row]}"
            images.append(image)
            captions.append(text)
    return title if len(rows) else f"{title}: none", images, captions
