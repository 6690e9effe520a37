"""Weights and images made from names and a seed, the same on both sides.

The script that asks PyTorch for goldens and the tests that compare with them
both import this file, so the goldens need not hold weights or images. It
needs NumPy alone.
"""

from __future__ import annotations

import zlib

import numpy as np

SEED = 42


def images(*shape: int) -> np.ndarray:
    """Float32 `[B, H, W, 3]`, a smooth pattern with noise, about -2 .. 2."""
    batch, height, width, _ = shape
    rng = np.random.default_rng([SEED, *shape])
    rows = np.linspace(0, 6, height)[:, None, None]
    columns = np.linspace(0, 4, width)[None, :, None]
    phases = rng.uniform(0, 6, (batch, 1, 1, 3))
    waves = np.sin(rows + phases) + np.cos(columns - phases)
    noise = rng.standard_normal(shape)
    return (waves + 0.3 * noise).astype(np.float32)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One array of a state dict, by its PyTorch name.

    Nothing stays at a value where it would hide a mistake: scales are not
    one, biases and attention biases not zero, running statistics neither.
    """
    rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    last = name.rpartition(".")[2]
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if last == "running_var":
        value = rng.uniform(0.5, 1.5, shape)
    elif last == "running_mean" or last == "bias":
        value = 0.1 * rng.standard_normal(shape)
    elif last == "attention_biases":
        value = rng.standard_normal(shape)
    elif ".grn." in name:
        value = 0.3 * rng.standard_normal(shape)
    elif len(shape) == 1:
        value = rng.uniform(0.7, 1.3, shape)
    else:
        fan_in = np.prod(shape[1:])
        value = rng.standard_normal(shape) / np.sqrt(fan_in)
    return value.astype(np.float32)


def state_dict(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The whole state dict, from the shape of each entry."""
    return {name: weight(name, shape) for name, shape in shapes.items()}
