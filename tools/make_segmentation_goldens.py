"""Asks PyTorch for the numbers of dilated encoders and segmentation networks.

As tools/make_model_goldens.py, in the same environment:

    torch-venv/bin/python tools/make_segmentation_goldens.py

Sources: torchvision's and timm's own dilation, smp's encoders and networks.
mmsegmentation does not install beside this PyTorch; its dilation, of two
lines, is written here on torchvision's modules, and so is the decoder of
DeepLabV3+'s paper, which smp has in another form.
"""

from __future__ import annotations

# First: it lets torchvision load, which the others import.
from make_model_goldens import ROOT, nchw, recipe

# isort: split
import numpy as np
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from segmentation_models_pytorch.decoders.deeplabv3 import (
    decoder as smp_deeplab,
)
from segmentation_models_pytorch.encoders._utils import (
    replace_strides_with_dilation,
)
from segmentation_models_pytorch.encoders.resnet import ResNetEncoder
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, Bottleneck

FOLDER = ROOT / "tests" / "jax_models" / "goldens"


# ---- Dilated encoders -------------------------------------------------------


def resnet(block, output_stride=32):
    """torchvision's, short; dilated as torchvision does."""
    return torchvision.models.ResNet(
        block,
        list(recipe.SHORT),
        replace_stride_with_dilation=[
            False,
            output_stride <= 8,
            output_stride <= 16,
        ],
    )


def dilate_as_mmseg(model, block, output_stride):
    """mmseg's `ResLayer` with `contract_dilation`, and its blocks.

    A basic block spreads its first filter alone.
    """
    dilations = {16: {4: 2}, 8: {3: 2, 4: 4}}[output_stride]
    for number, dilation in dilations.items():
        for position, one in enumerate(getattr(model, f"layer{number}")):
            conv = one.conv1 if block is BasicBlock else one.conv2
            spread = dilation // 2 if position == 0 else dilation
            conv.dilation = conv.padding = (spread, spread)
            if position == 0:
                conv.stride = (1, 1)
                one.downsample[0].stride = (1, 1)
    return model


def resnet_maps(model, x):
    """The maps of torchvision's ResNet, finest first."""
    x = model.relu(model.bn1(model.conv1(x)))
    maps = [x]
    x = model.maxpool(x)
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = layer(x)
        maps.append(x)
    return maps


def lite_maps(model, x):
    """The maps of timm's EfficientNet after each stage of blocks."""
    x = model.bn1(model.conv_stem(x))
    maps = []
    for stage in model.blocks:
        x = stage(x)
        maps.append(x)
    return maps


def dilated(kind, reading, output_stride):
    """The network, and what gives its maps."""
    if kind == "lite":
        options = dict(bn_eps=1e-3)
        if reading == "torchvision":  # timm's own is the same.
            options |= dict(output_stride=output_stride)
        model = timm.create_model("tf_efficientnet_lite0", **options)
        if reading == "smp":
            rates = {16: {5: 2, 6: 2}, 8: {3: 2, 4: 2, 5: 4, 6: 4}}
            for stage, rate in rates[output_stride].items():
                replace_strides_with_dilation(model.blocks[stage], rate)
        return model, lite_maps
    block = {"basic": BasicBlock, "bottleneck": Bottleneck}[kind]
    if reading == "torchvision":
        return resnet(block, output_stride), resnet_maps
    if reading == "mmseg":
        model = dilate_as_mmseg(resnet(block), block, output_stride)
        return model, resnet_maps
    model = ResNetEncoder([3] * 6, block=block, layers=list(recipe.SHORT))
    model.make_dilated(output_stride)
    return model, lambda model, x: model(x)[1:]


def load(model):
    """Gives the recipe's weights to a model."""
    shapes = {key: tuple(v.shape) for key, v in model.state_dict().items()}
    model.load_state_dict(
        {
            key: torch.from_numpy(value)
            for key, value in recipe.state_dict(shapes).items()
        }
    )
    return model.eval()


def all_dilations():
    """Samples of the last map, by what it is of."""
    images = nchw(recipe.images(1, 64, 96, 3))
    found = {}
    for kind, reading in recipe.READINGS:
        for stride in recipe.OUTPUT_STRIDES:
            model, maps_of = dilated(kind, reading, stride)
            with torch.no_grad():
                last = maps_of(load(model), images)[-1]
            key = f"{kind} {reading} {stride}"
            found[key] = recipe.sample(last.permute(0, 2, 3, 1), 512)
    return found


# ---- Segmentation networks --------------------------------------------------


class Pair(torch.nn.Module):
    """Depthwise convolution, BatchNorm, ReLU and 1x1 convolution.

    Modules carry smp's names, and BatchNorm, which smp lacks, ours.
    """

    def __init__(self, inputs, outputs, rate):
        super().__init__()
        depthwise = torch.nn.Conv2d(
            inputs,
            inputs,
            3,
            padding=rate,
            dilation=rate,
            groups=inputs,
            bias=False,
        )
        self.add_module("0", depthwise)
        self.depthwise_norm = torch.nn.BatchNorm2d(inputs)
        self.add_module("1", torch.nn.Conv2d(inputs, outputs, 1, bias=False))

    def forward(self, x):
        """Maps `[B, inputs, h, w]` to `[B, outputs, h, w]`."""
        depthwise, pointwise = self._modules["0"], self._modules["1"]
        return pointwise(torch.relu(self.depthwise_norm(depthwise(x))))


def separable(inputs, outputs, rate):
    """The paper's separable convolution."""
    return torch.nn.Sequential(
        Pair(inputs, outputs, rate),
        torch.nn.BatchNorm2d(outputs),
        torch.nn.ReLU(),
    )


class PaperDecoder(torch.nn.Module):
    """DeepLabV3+'s decoder as in its paper, over torchvision's ResNet-50."""

    def __init__(self, channels):
        super().__init__()
        rates = (6, 12, 18)
        aspp = smp_deeplab.ASPP(2048, channels, rates, True, 0.0)
        for index, rate in enumerate(rates, start=1):
            aspp.convs[index] = separable(2048, channels, rate)
        self.aspp = torch.nn.Sequential(aspp)
        self.block1 = torch.nn.Sequential(
            torch.nn.Conv2d(256, 48, 1, bias=False),
            torch.nn.BatchNorm2d(48),
            torch.nn.ReLU(),
        )
        self.block2 = separable(channels + 48, channels, 1)
        self.block3 = separable(channels, channels, 1)

    def forward(self, maps):
        """Maps the pyramid to `[B, channels, H / 4, W / 4]`."""
        low, x = self.block1(maps[1]), self.aspp(maps[-1])
        x = functional.interpolate(x, low.shape[2:], mode="bilinear")
        return self.block3(self.block2(torch.cat([x, low], 1)))


class PaperDeepLabV3Plus(torch.nn.Module):
    """DeepLabV3+ as in its paper, over a short ResNet of torchvision's."""

    def __init__(self, channels):
        super().__init__()
        self.encoder = resnet(Bottleneck, 16)
        del self.encoder.fc
        self.decoder = PaperDecoder(channels)
        head = torch.nn.Conv2d(channels, recipe.PIXEL_CLASSES, 1)
        self.segmentation_head = torch.nn.Sequential(head)

    def forward(self, images):
        """Maps `[B, 3, H, W]` to logits `[B, classes, H, W]`."""
        maps = resnet_maps(self.encoder, images)
        logits = self.segmentation_head(self.decoder(maps))
        size = images.shape[2:]
        return functional.interpolate(logits, size, mode="bilinear")


def network(name):
    """The counterpart of one of the recipe's networks."""
    kind, options = recipe.SEGMENTATION[name]
    if name == "deeplabv3plus_paper":
        return PaperDeepLabV3Plus(options["channels"])
    shared = dict(
        encoder_name=options["encoder"],
        encoder_weights=None,
        classes=recipe.PIXEL_CLASSES,
    )
    if kind == "unet":
        channels = options.get("channels", (256, 128, 64, 32, 16))
        return smp.Unet(decoder_channels=channels, **shared)
    return smp.DeepLabV3Plus(
        encoder_output_stride=options.get("output_stride", 16),
        decoder_channels=options.get("channels", 256),
        decoder_aspp_separable=options.get("separable", True),
        decoder_aspp_dropout=0.0,
        **shared,
    )


def goldens(name):
    """Logits, and a step of training in float64, as for the classifiers."""
    model = load(network(name))
    found = {"parameters": sum(p.numel() for p in model.parameters())}
    kind, _ = recipe.SEGMENTATION[name]
    with torch.no_grad():
        for height, width in recipe.SEGMENTATION_SIZES[kind]:
            images = nchw(recipe.images(1, height, width, 3))
            logits = model(images).permute(0, 2, 3, 1)
            found[f"logits {height}x{width}"] = recipe.sample(logits, 2048)
    model.double().train()
    images = nchw(recipe.images(*recipe.CLOSE_LOOK)).double().requires_grad_()
    logits = model(images)
    labels = torch.from_numpy(recipe.pixel_labels(*recipe.CLOSE_LOOK[:3]))
    loss = functional.cross_entropy(logits, labels)
    loss.backward()
    found["train loss"] = loss.detach().numpy()
    logits = logits.detach().permute(0, 2, 3, 1)
    found["train logits"] = recipe.sample(logits, 512)
    slope = images.grad.permute(0, 2, 3, 1)
    found["gradient images"] = recipe.sample(slope, 512)
    parameters = dict(model.named_parameters())
    for key in recipe.gradient_names(parameters):
        found[f"gradient {key}"] = recipe.sample(parameters[key].grad)
    for key, value in model.state_dict().items():
        if "running" in key:
            found[f"updated {key}"] = recipe.sample(value.numpy(), 8)
    return found


def main():
    """Writes the files."""
    np.savez_compressed(FOLDER / "dilations.npz", **all_dilations())
    for name in recipe.SEGMENTATION:
        path = FOLDER / f"{name}.npz"
        np.savez_compressed(path, **goldens(name))
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
