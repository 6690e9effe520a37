"""Channel mean and standard deviation over all training pixels, cached."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from core import atomic_files
from core.errors import UserError
from input_pipeline import parallel_scan
from input_pipeline.decoding import BadImage, decode
from input_pipeline.sources.base import Examples

_VALUES = np.arange(256) / 255.0


def channel_stats(
    images: Examples,
    rows: np.ndarray,
    cache_dir: str | Path,
    fingerprint: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every pixel of the training part.

    Global, not averaged per image: a large image counts for more than a small
    one, and the deviation includes the differences between images. Images
    that cannot be read are left out.

    Args:
      images: the images.
      rows: int `[N]`, the training rows.
      cache_dir: folder of the json file with earlier answers.
      fingerprint: of the source; with the rows it keys the cache.

    Returns:
      mean float32 `[3]` and std float32 `[3]`, of values in 0 to 1.

    Raises:
      UserError: none of the rows can be read.
    """
    rows = np.sort(np.asarray(rows, np.int64))
    key = hashlib.sha256(fingerprint.encode() + rows.tobytes()).hexdigest()[:16]
    path = Path(cache_dir) / "channel_stats.json"
    known = _read_cache(path)
    if key not in known:
        mean, std = _measure(images, rows)
        # Read again: another run may have added its own meanwhile.
        known = _read_cache(path) | {
            key: {"mean": mean.tolist(), "std": std.tolist()}
        }
        atomic_files.write_text(path, json.dumps(known, indent=1) + "\n")
    answer = known[key]
    return (
        np.array(answer["mean"], np.float32),
        np.array(answer["std"], np.float32),
    )


def _read_cache(path: Path) -> dict[str, dict[str, list[float]]]:
    """What the cache holds; nothing where it is absent or damaged."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {
            key: answer
            for key, answer in known.items()
            if len(answer["mean"]) == 3 and len(answer["std"]) == 3
        }
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}


def _measure(
    images: Examples, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    # Counts of the 256 values per channel: exact, and in any order the same.
    total = np.zeros((3, 256), np.int64)
    for count in parallel_scan.every_image(
        _histogram, images, rows, "channel statistics"
    ):
        total += count
    pixels = total.sum(axis=1)
    if not pixels.all():
        raise UserError(
            f"none of the {len(rows)} training images can be read; check "
            "--config.data.root"
        )
    mean = total @ _VALUES / pixels
    variance = total @ _VALUES**2 / pixels - mean**2
    # Images of one colour would divide by zero.
    return mean, np.sqrt(np.maximum(variance, 1e-6))


def _histogram(images: Examples, row: int) -> np.ndarray:
    """Counts per channel and value, int64 `[3, 256]`."""
    try:
        pixels = decode(images.read(row)["image"])
    except BadImage:
        return np.zeros((3, 256), np.int64)
    return np.stack(
        [
            np.bincount(pixels[..., channel].ravel(), minlength=256)
            for channel in range(3)
        ]
    )
