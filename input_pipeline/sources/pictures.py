"""The images of a run's data by id, for reports."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from input_pipeline.decoding import BadImage, decode
from input_pipeline.sources.mask_format import MaskFormat
from input_pipeline.sources.registry import open_source


def read_pictures(
    data: Mapping[str, Any], ids: Sequence[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (id, pixels uint8 `[H, W, 3]`) of the images that can be read.

    Args:
      data: a plain `config.data`.
      ids: of labelled images or of those to predict.

    Raises:
      UserError: the data is not where it was.
    """
    source = open_source(SimpleNamespace(**data))
    wanted = set(ids)
    for examples in (source.labelled, source.test):
        if examples is None:
            continue
        for row, name in enumerate(examples.ids.tolist()):
            if name in wanted:
                try:
                    pixels = decode(examples.read(row)["image"])
                except BadImage:
                    continue
                wanted.remove(name)
                yield name, pixels


def read_masked_pictures(
    data: Mapping[str, Any], ids: Sequence[str], cache: Path | None = None
) -> Iterator[tuple[str, np.ndarray, np.ndarray, MaskFormat]]:
    """Yields (id, pixels, mask, its format) of labelled images.

    Args:
      data: a plain `config.data` with masks.
      ids: of the images.
      cache: see `open_source`.

    Raises:
      UserError: the data is not where it was.
    """
    examples = open_source(SimpleNamespace(**data), cache).labelled
    row_of = {name: row for row, name in enumerate(examples.ids.tolist())}
    for name in ids:
        if name in row_of:
            with contextlib.suppress(BadImage):
                row = row_of[name]
                pixels = decode(examples.read(row)["image"])
                yield name, pixels, examples.mask(row), examples.format
