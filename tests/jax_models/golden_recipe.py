"""Weights and images made from names and a seed, the same on both sides.

The script that asks PyTorch for goldens and the tests that compare with them
both import this file, so the goldens need not hold weights or images. It
needs NumPy alone.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable

import numpy as np

SEED = 42
CLASSES = 16

# Heights and widths for the logits. 96 x 160 and 64 x 96 leave partial
# windows in TinyViT and odd maps at the end of every model; 75 x 101 does not
# divide anywhere.
SIZES = ((224, 224), (96, 160), (75, 101))
# Where blocks, gradients and BatchNorm's updates are compared.
CLOSE_LOOK = (2, 64, 96, 3)

# Our name -> the name in timm (None: the script builds it from timm's parts).
MODELS = {
    "miniconvnext": None,
    "miniconvnext_demo": None,
    "tinyvit_5m": "tiny_vit_5m_224",
    "tinyvit_11m": "tiny_vit_11m_224",
    "tinyvit_21m": "tiny_vit_21m_224",
    "tinyvit_demo": None,
    "efficientnetv2_s": "tf_efficientnetv2_s",
    "efficientnetv2_m": "tf_efficientnetv2_m",
    "efficientnetv2_l": "tf_efficientnetv2_l",
    "efficientnetv2_demo": None,
    "convnextv2_atto": "convnextv2_atto",
    "convnextv2_femto": "convnextv2_femto",
    "convnextv2_pico": "convnextv2_pico",
    "convnextv2_nano": "convnextv2_nano",
    "convnextv2_tiny": "convnextv2_tiny",
    "convnextv2_small": "convnextv2_small",
    "convnextv2_base": "convnextv2_base",
    "convnextv2_large": "convnextv2_large",
    "convnextv2_demo": None,
}

# Sides of attention windows, from and to, whose bias tables are resized.
RESIZES = ((7, 12), (14, 7), (7, 5))

# Parameters whose gradients are compared, as regular expressions: the first
# and the last match of each are taken.
GRADIENTS = (
    r"conv_dw\.weight|conv2\.conv\.weight",
    r"(stem\.0|patch_embed\.conv1\.conv|conv_stem)\.weight",
    r"norm\.weight",
    r"bn\d?\.(weight|bias)",
    r"grn\.(weight|bias)",
    r"attention_biases",
    r"qkv\.(weight|bias)",
    r"fc1\.weight",
    r"se\.conv_reduce\.weight",
    r"(head\.fc|classifier)\.(weight|bias)",
)


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


def labels(batch: int) -> np.ndarray:
    """Int64 `[batch]`, different ones."""
    return np.arange(batch, dtype=np.int64) * 5 % CLASSES


def sample(array: np.ndarray, count: int = 64) -> np.ndarray:
    """At most `count` values of an array, evenly spaced over all of it."""
    flat = np.asarray(array).ravel()
    places = np.linspace(0, len(flat) - 1, min(count, len(flat)))
    return flat[places.astype(int)]


def gradient_names(names: Iterable[str]) -> list[str]:
    """The parameters whose gradients are compared, of all `names`."""
    names, chosen = sorted(names), []
    for pattern in GRADIENTS:
        found = [name for name in names if re.search(pattern, name)]
        chosen.extend(found[:1] + found[-1:])
    return sorted(set(chosen))
