"""Networks that neither timm nor torchvision has whole, from their parts.

For make_model_goldens.py, which gives them their weights.
"""

from __future__ import annotations

import golden_recipe as recipe
import torch
import torchvision
from timm.models import convnext
from torch.nn.functional import conv2d
from torchvision.models.resnet import BasicBlock, conv1x1


class ThreeStages(torch.nn.Module):
    """ConvNeXt with three stages, from timm's with four."""

    def __init__(self, depths, dims):
        super().__init__()
        whole = convnext.ConvNeXt(
            depths=(*depths, 1),
            dims=(*dims, 8),
            num_classes=recipe.CLASSES,
            ls_init_value=None,
        )
        short = convnext.NormMlpClassifierHead(
            dims[-1], recipe.CLASSES, norm_layer=convnext.LayerNorm2d
        )
        self.stem = whole.stem
        self.stages = whole.stages[:3]
        self.head = short

    def forward(self, x):
        """Maps `[B, 3, H, W]` to logits."""
        return self.head(self.stages(self.stem(x)))


class NarrowResNet(torch.nn.Module):
    """A ResNet of torchvision's blocks, whose own is 64 channels wide."""

    def __init__(self, depths, width):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(width)
        self.maxpool = torch.nn.MaxPool2d(3, 2, 1)
        inputs = width
        for number, depth in enumerate(depths):
            outputs = width * 2**number
            blocks = []
            for position in range(depth):
                stride = 2 if position == 0 and number > 0 else 1
                downsample = None
                if inputs != outputs:
                    downsample = torch.nn.Sequential(
                        conv1x1(inputs, outputs, stride),
                        torch.nn.BatchNorm2d(outputs),
                    )
                blocks.append(BasicBlock(inputs, outputs, stride, downsample))
                inputs = outputs
            setattr(self, f"layer{number + 1}", torch.nn.Sequential(*blocks))
        self.fc = torch.nn.Linear(inputs, recipe.CLASSES)

    def forward(self, x):
        """Maps `[B, 3, H, W]` to logits."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.fc(x.mean((2, 3)))


class WideBlock(torch.nn.Module):
    """A block of a wide ResNet, as its authors' functions compute it."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.stride = stride
        self.bn0 = torch.nn.BatchNorm2d(inputs)
        self.bn1 = torch.nn.BatchNorm2d(outputs)
        self.conv0 = parameter(outputs, inputs, 3, 3)
        self.conv1 = parameter(outputs, outputs, 3, 3)
        if inputs != outputs:
            self.convdim = parameter(outputs, inputs, 1, 1)

    def forward(self, x):
        """Maps `[B, inputs, H, W]` to `[B, outputs, H / stride, ..]`."""
        one = torch.relu(self.bn0(x))
        y = conv2d(one, self.conv0, stride=self.stride, padding=1)
        two = torch.relu(self.bn1(y))
        z = conv2d(two, self.conv1, padding=1)
        if hasattr(self, "convdim"):
            return z + conv2d(one, self.convdim, stride=self.stride)
        return z + x


class WideResNet(torch.nn.Module):
    """A wide ResNet, in the names of its authors' state."""

    def __init__(self, depth, width):
        super().__init__()
        self.conv0 = parameter(16, 3, 3, 3)
        inputs = 16
        for group in range(3):
            outputs = 16 * width * 2**group
            blocks = torch.nn.Module()
            for index in range((depth - 4) // 6):
                stride = 2 if group and index == 0 else 1
                block = WideBlock(inputs, outputs, stride)
                blocks.add_module(f"block{index}", block)
                inputs = outputs
            self.add_module(f"group{group}", blocks)
        self.bn = torch.nn.BatchNorm2d(inputs)
        self.fc = torch.nn.Linear(inputs, recipe.CLASSES)

    def forward(self, x):
        """Maps `[B, 3, H, W]` to logits."""
        x = conv2d(x, self.conv0, padding=1)
        for group in (self.group0, self.group1, self.group2):
            for block in group.children():
                x = block(x)
        return self.fc(torch.relu(self.bn(x)).mean((2, 3)))


def parameter(*shape):
    """An uninitialised parameter."""
    return torch.nn.Parameter(torch.empty(shape))


class PlainLayer(torch.nn.Module):
    """A layer of the first DenseNet, without bottleneck."""

    def __init__(self, inputs, growth):
        super().__init__()
        self.norm1 = torch.nn.BatchNorm2d(inputs)
        self.conv1 = torch.nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x):
        """Maps what there is, or a list of it, to the new maps."""
        x = torch.cat(x, 1) if isinstance(x, list) else x
        return self.conv1(torch.relu(self.norm1(x)))


def small_densenet(depth, growth, stem, bottleneck):
    """Three blocks of torchvision's parts, behind one 3x3 convolution."""
    model = torchvision.models.DenseNet(
        growth, (depth,) * 3, stem, num_classes=recipe.CLASSES
    )
    features = model.features
    del features.norm0, features.relu0, features.pool0
    features.conv0 = torch.nn.Conv2d(3, stem, 3, padding=1, bias=False)
    if bottleneck:
        return model
    width = stem
    for number in (1, 2, 3):
        block = getattr(features, f"denseblock{number}")
        for index in range(depth):
            layer = PlainLayer(width, growth)
            setattr(block, f"denselayer{index + 1}", layer)
            width += growth
        if number < 3:
            transition = getattr(features, f"transition{number}")
            transition.norm = torch.nn.BatchNorm2d(width)
            transition.conv = torch.nn.Conv2d(width, width, 1, bias=False)
    features.norm5 = torch.nn.BatchNorm2d(width)
    model.classifier = torch.nn.Linear(width, recipe.CLASSES)
    return model
