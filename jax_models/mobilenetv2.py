"""MobileNetV2.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR
2018, arXiv 1801.04381, table 2. As in torchvision and timm
(`mobilenetv2_100`): BatchNorm epsilon 1e-5 and momentum .9, padding on both
sides, dropout of .2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from jax_models import functional
from jax_models.inverted_bottleneck import Stage, Style
from jax_models.inverted_bottleneck_net import Config, InvertedBottleneckNet

VARIANTS = {
    "mobilenetv2": Config(
        (
            Stage(1, 3, 1, 1, 16),
            Stage(2, 3, 2, 6, 24),
            Stage(3, 3, 2, 6, 32),
            Stage(4, 3, 2, 6, 64),
            Stage(3, 3, 1, 6, 96),
            Stage(3, 3, 2, 6, 160),
            Stage(1, 3, 1, 6, 320),
        ),
        drop_path_rate=0.0,
    ),
}

# What torchvision numbers inside of a block, and timm's names.
_SEPARABLE = {"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2"}
_INVERTED = {
    "0.0": "conv_pw",
    "0.1": "bn1",
    "1.0": "conv_dw",
    "1.1": "bn2",
    "2": "conv_pwl",
    "3": "bn3",
}


class MobileNetV2(InvertedBottleneckNet):
    """MobileNetV2, by its `Config`."""

    STYLE = Style(functional.relu6, "symmetric", 1e-5, 0.9)
    SMALL_DROPS = 2

    def published_names(
        self, state_dict: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """torchvision's names, turned into timm's."""
        blocks = [
            (f"blocks.{stage}.{index}", _INVERTED if stage else _SEPARABLE)
            for stage, stage_blocks in enumerate(self.blocks)
            for index in range(len(stage_blocks))
        ]
        outside = {
            "features.0.0": "conv_stem",
            "features.0.1": "bn1",
            f"features.{len(blocks) + 1}.0": "conv_head",
            f"features.{len(blocks) + 1}.1": "bn2",
            "classifier.1": "classifier",
        }

        def renamed(name: str) -> str:
            module, _, array = name.rpartition(".")
            found = re.fullmatch(r"features\.(\d+)\.conv\.(.+)", module)
            if found is None:
                return f"{outside.get(module, module)}.{array}"
            prefix, layers = blocks[int(found[1]) - 1]
            return f"{prefix}.{layers.get(found[2], found[2])}.{array}"

        return {renamed(name): value for name, value in state_dict.items()}
