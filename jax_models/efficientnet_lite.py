"""EfficientNet-Lite: EfficientNet for small processors.

Liu, "Higher accuracy on vision models with EfficientNet-Lite", TensorFlow
blog, 16 March 2020 (google/automl, efficientnetv1/lite): EfficientNet (Tan &
Le, arXiv 1905.11946) without squeeze-excite, with ReLU6 in place of SiLU, and
with stem and head of one width in all sizes. As published (timm's
`tf_efficientnet_lite*`): TensorFlow's "SAME" padding, BatchNorm epsilon 1e-3
and momentum .99, weights started as in EfficientNetV2. Stochastic depth that
keeps .8 of the last block; dropout of .2, .2 and .3 for Lite0, 1 and 2.

Pretrained weights expect (pixel - 127.5) / 127.5, not ImageNet's mean.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jax_models import functional
from jax_models.inverted_bottleneck import Stage, Style
from jax_models.inverted_bottleneck_net import Config, InvertedBottleneckNet
from jax_models.torch import pretrained


def _published(depths: tuple[int, ...], widths: tuple[int, ...]) -> tuple:
    kernel_sizes = (3, 3, 5, 3, 5, 5, 3)
    strides = (1, 2, 2, 2, 1, 2, 1)
    expansions = (1, 6, 6, 6, 6, 6, 6)
    rows = zip(depths, kernel_sizes, strides, expansions, widths, strict=True)
    return tuple(Stage(*row) for row in rows)


VARIANTS = {
    "efficientnet_lite0": Config(
        _published((1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320))
    ),
    "efficientnet_lite1": Config(
        _published((1, 3, 3, 4, 4, 5, 1), (16, 24, 40, 80, 112, 192, 320))
    ),
    "efficientnet_lite2": Config(
        _published((1, 3, 3, 4, 4, 5, 1), (16, 24, 48, 88, 120, 208, 352)),
        dropout=0.3,
    ),
    "efficientnet_lite_demo": Config(
        (
            Stage(1, 3, 1, 1, 16),
            Stage(1, 3, 2, 2, 24),
            Stage(2, 5, 2, 3, 40),
            Stage(1, 3, 2, 4, 48),
            Stage(1, 5, 2, 4, 64),
        ),
        stem_width=16,
        features=256,
        drop_path_rate=0.1,
        dropout=0.1,
    ),
}


class EfficientNetLite(InvertedBottleneckNet):
    """EfficientNet-Lite, by its `Config`."""

    PUBLISHED_MEAN = PUBLISHED_STD = (0.5, 0.5, 0.5)
    STYLE = Style(functional.relu6)

    def published_names(
        self, state_dict: Mapping[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        """efficientnet_lite_pytorch's names, turned into timm's."""
        depths = [len(blocks) for blocks in self.blocks]
        return pretrained.timm_names(state_dict, depths)
