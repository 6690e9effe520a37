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
PIXEL_CLASSES = 3

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
    "resnet18": "torchvision's",
    "resnet34": "torchvision's",
    "resnet50": "torchvision's",
    "resnet_demo": None,
    "efficientnet_lite0": "tf_efficientnet_lite0",
    "efficientnet_lite1": "tf_efficientnet_lite1",
    "efficientnet_lite2": "tf_efficientnet_lite2",
    "efficientnet_lite_demo": None,
    **{f"efficientnet_b{n}": f"tf_efficientnet_b{n}" for n in range(8)},
    "mobilenetv2": "mobilenetv2_100",
    "densenet121": "torchvision's",
    "densenet_bc_100_12": None,
    "densenet_40_12": None,
    "densenet_bc_190_40": None,
    "densenet_demo": None,
    "wide_resnet_28_10": None,
    "wide_resnet_16_8": None,
    "wide_resnet_16_4": None,
    "wide_resnet_40_4": None,
    "wide_resnet_demo": None,
    "inception_v4": "inception_v4",
}
# Larger or smaller siblings, of which the goldens have the logits alone.
LOGITS_ONLY = (
    *(f"efficientnet_b{n}" for n in range(1, 8)),
    "densenet_40_12",
    "densenet_bc_190_40",
    "wide_resnet_28_10",
    "wide_resnet_16_8",
    "wide_resnet_16_4",
)
# With the stem for small images, at SMALL_SIZES[0].
SMALL_STEMS = ("resnet18", "densenet121", "mobilenetv2", "efficientnet_b0")
SMALL_SIZES = ((32, 32), (40, 24))


def is_small(name: str) -> bool:
    """Whether a network is for images of 32 px."""
    return bool(re.match(r"wide_resnet|densenet_(bc_)?\d+_", name))


def sizes(name: str) -> tuple[tuple[int, int], ...]:
    """Heights and widths for the logits of a model of `MODELS`."""
    return SMALL_SIZES if is_small(name) else SIZES


def close_look(name: str) -> tuple[int, int, int, int]:
    """The shape of the images for blocks, gradients and updates."""
    if name == "inception_v4":
        return 2, 112, 128, 3
    return (2, 32, 24, 3) if is_small(name) else CLOSE_LOOK


# Encoders that are dilated in several readings: our name and options.
SHORT = (1, 1, 2, 2)
DILATED = {
    "basic": ("resnet34", {"depths": SHORT}),
    "bottleneck": ("resnet50", {"depths": SHORT}),
    "lite": ("efficientnet_lite0", {}),
}
# Their readings, the strides of their last maps.
READINGS = (
    ("basic", "smp"),
    ("basic", "mmseg"),
    ("bottleneck", "torchvision"),
    ("bottleneck", "smp"),
    ("bottleneck", "mmseg"),
    ("lite", "torchvision"),
    ("lite", "smp"),
)
OUTPUT_STRIDES = (16, 8)

# Segmentation networks: our name and options. Without dropout.
SEGMENTATION = {
    "unet_resnet34": ("unet", {"encoder": "resnet34"}),
    "unet_resnet18": (
        "unet",
        {"encoder": "resnet18", "channels": (64, 48, 32, 24, 16)},
    ),
    "deeplabv3plus_resnet50": (
        "deeplabv3plus",
        {"encoder": "resnet50", "wiring": "smp"},
    ),
    "deeplabv3plus_resnet18_8": (
        "deeplabv3plus",
        {
            "encoder": "resnet18",
            "wiring": "smp",
            "output_stride": 8,
            "channels": 48,
        },
    ),
    "deeplabv3plus_dense": (
        "deeplabv3plus",
        {
            "encoder": "resnet18",
            "wiring": "smp",
            "separable": False,
            "channels": 32,
        },
    ),
    "deeplabv3plus_paper": (
        "deeplabv3plus",
        {
            "encoder": "resnet50",
            "encoder_options": {"depths": SHORT},
            "channels": 48,
        },
    ),
}
# Heights and widths for their logits; those that nothing divides are for the
# networks whose published code takes them.
SEGMENTATION_SIZES = {
    "unet": ((64, 96), (75, 101), (33, 1)),
    "deeplabv3plus": ((64, 96), (128, 80)),
}

# Sides of attention windows, from and to, whose bias tables are resized.
RESIZES = ((7, 12), (14, 7), (7, 5))

# Parameters whose gradients are compared, as regular expressions: the first
# and the last match of each are taken.
GRADIENTS = (
    r"conv_dw\.weight|conv2\.conv\.weight|layer\d\.\d\.conv2\.weight",
    r"(stem\.0|patch_embed\.conv1\.conv|conv_stem|^conv1)\.weight",
    r"norm\.weight",
    r"bn\d?\.(weight|bias)",
    r"grn\.(weight|bias)",
    r"attention_biases",
    r"qkv\.(weight|bias)",
    r"fc1\.weight",
    r"se\.conv_reduce\.weight",
    r"(fc|classifier|segmentation_head\.0)\.(weight|bias)",
    r"(^decoder|layer\d\.0\.downsample)\..*\d\.weight",
    r"(denselayer|transition)\d+\.conv\d?\.weight",
    r"(denselayer\d+\.norm\d|features\.norm\d)\.(weight|bias)",
    r"^group\d\.block\d\.conv(0|1|dim)$",
    r"^features\.\d+\..*conv\.weight",
    r"^(features\.)?conv0(\.weight)?$",
    r"^last_linear\.(weight|bias)",
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


# Photos that scikit-learn ships.
PHOTOS = ("china", "flower")
# Networks whose trained weights are in packages, and what they expect.
PRETRAINED = {
    "efficientnet_lite0": 224,
    "efficientnet_lite1": 240,
    "efficientnet_lite2": 260,
}


def photo(name: str, size: int) -> np.ndarray:
    """A photo as these networks take it: float32 `[1, size, size, 3]`.

    The short side becomes size / .875 (bicubic), of which the middle is cut.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image(f"{name}.jpg"))
    scale = int(size / 0.875) / min(image.size)
    large = tuple(round(scale * length) for length in image.size)
    image = image.resize(large, Image.Resampling.BICUBIC)
    left, top = ((length - size) // 2 for length in large)
    image = image.crop((left, top, left + size, top + size))
    return (np.asarray(image, np.float32)[None] - 127.5) / 127.5


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


def pixel_labels(batch: int, height: int, width: int) -> np.ndarray:
    """Int64 `[batch, height, width]`, all classes in diagonal stripes."""
    rows, columns = np.ogrid[:height, :width]
    first = np.arange(batch)[:, None, None]
    return ((rows + 2 * columns) // 7 + first) % PIXEL_CLASSES


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
