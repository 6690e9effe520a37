"""The digits inside scikit-learn: what trains when no data was given."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from core import stratified_split
from input_pipeline.sources.base import ArrayExamples, Source, fingerprint

TEST_SEED = 42


def open_digits(data: Any) -> Source:
    """Opens the 1,797 digits of 8x8 grey pixels, a stratified fifth held out.

    They are optical recognitions of handwriting (Alpaydin & Kaynak 1998).

    Args:
      data: `config.data`; the submission's column names.
    """
    pixels, labels = _read()
    grey = np.round(pixels * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)  # [N, 8, 8, 3]
    ids = np.array([f"digit-{row:04d}" for row in range(len(grey))])
    held_out = stratified_split.split(ids, labels, 5, TEST_SEED) == 0
    train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    return Source(
        name="digits",
        labelled=ArrayExamples(ids[train], labels[train], images[train]),
        test=ArrayExamples(ids[test], labels[test], images[test]),
        classes=tuple(str(digit) for digit in range(10)),
        sample_submission=None,
        id_column=data.submission_id_column,
        target_column=data.target_column,
        fingerprint=fingerprint(ids, labels, [images.size]),
    )


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Pixels `[N, 8, 8]` from 0 to 16, and labels int32 `[N]`.

    `sklearn.datasets.load_digits` returns the same, but importing it takes
    as long as importing everything else of a training together.
    """
    package = importlib.util.find_spec("sklearn")
    folder = Path(package.origin).parent / "datasets" / "data"
    table = np.loadtxt(folder / "digits.csv.gz", delimiter=",")
    pixels = table[:, :-1].reshape(-1, 8, 8)
    return pixels, table[:, -1].astype(np.int32)
