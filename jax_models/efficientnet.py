"""EfficientNet-B0 to B7.

Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural
Networks", ICML 2019, arXiv 1905.11946: table 1 and its scaled forms, whose
widths are rounded to multiples of 8 and depths up. As published (timm's
`tf_efficientnet_b*`): TensorFlow's "SAME" padding, BatchNorm epsilon 1e-3 and
momentum .99, squeeze-excite with a quarter of the block's input. Stochastic
depth that keeps .8 of the last block; dropout from .2 (B0) to .5 (B7).
Published at 224, 240, 260, 300, 380, 456, 528 and 600 px.
"""

from __future__ import annotations

import math

from jax_models import functional
from jax_models.inverted_bottleneck import Stage, Style
from jax_models.inverted_bottleneck_net import Config, InvertedBottleneckNet

# Table 1: depth, kernel size, stride, expansion and width of each stage.
B0 = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def _scaled(width: float, depth: float, dropout: float) -> Config:
    def channels(unscaled: int) -> int:
        scaled = unscaled * width
        rounded = max(8, int(scaled + 4) // 8 * 8)
        return rounded if rounded >= 0.9 * scaled else rounded + 8

    return Config(
        tuple(
            Stage(math.ceil(blocks * depth), *rest, channels(unscaled))
            for blocks, *rest, unscaled in B0
        ),
        stem_width=channels(32),
        features=channels(1280),
        dropout=dropout,
    )


VARIANTS = {
    "efficientnet_b0": _scaled(1.0, 1.0, 0.2),
    "efficientnet_b1": _scaled(1.0, 1.1, 0.2),
    "efficientnet_b2": _scaled(1.1, 1.2, 0.3),
    "efficientnet_b3": _scaled(1.2, 1.4, 0.3),
    "efficientnet_b4": _scaled(1.4, 1.8, 0.4),
    "efficientnet_b5": _scaled(1.6, 2.2, 0.4),
    "efficientnet_b6": _scaled(1.8, 2.6, 0.5),
    "efficientnet_b7": _scaled(2.0, 3.1, 0.5),
}


class EfficientNet(InvertedBottleneckNet):
    """EfficientNet, by its `Config`."""

    STYLE = Style(functional.silu, squeeze=0.25)
