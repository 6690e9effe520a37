"""Networks of PyTorch with stems for images of 32 px."""

from __future__ import annotations

import torch


def make_small(model: torch.nn.Module) -> torch.nn.Module:
    """Changes timm's or torchvision's network as `stem="small"` does ours.

    Args:
      model: a ResNet, DenseNet, EfficientNet or MobileNetV2; changed in place.
    """
    if hasattr(model, "conv_stem"):
        model.conv_stem.stride = (1, 1)
        depthwise = model.blocks[1][0].conv_dw
        if not hasattr(model.blocks[1][0], "se") or isinstance(
            model.blocks[1][0].se, torch.nn.Identity
        ):
            depthwise.stride = (1, 1)  # MobileNetV2 gives up two strides.
    elif hasattr(model, "layer1"):
        width = model.conv1.out_channels
        model.conv1 = torch.nn.Conv2d(3, width, 3, 1, 1, bias=False)
        model.maxpool = torch.nn.Identity()
    else:
        width = model.features.conv0.out_channels
        model.features.conv0 = torch.nn.Conv2d(3, width, 3, 1, 1, bias=False)
        model.features.pool0 = torch.nn.Identity()
    return model
