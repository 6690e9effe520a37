"""The U-Net that generates, and its step, as one writes them in PyTorch.

The same network as jax_models/flow_unet.py, whose weights `load` takes, and
the same step: augmentation as a condition, logit-normal times, label dropping,
clipping, Adam and the moving average, the last two in PyTorch's fused forms.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.torch_side import FORMS
from jax_models import flow_unet, velocity
from training.tasks import flow_augmentation as changes

_GROUP_WIDTH = 16


def group_norm(channels: int) -> nn.GroupNorm:
    """Returns the normalisation over 16 channels."""
    return nn.GroupNorm(channels // _GROUP_WIDTH, channels, eps=1e-5)


class Condition(nn.Module):
    """See `jax_models.velocity.Condition`."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        features = velocity.time_features(np.zeros(1)).shape[-1]
        self.time = nn.Linear(features, width)
        self.label = nn.Parameter(torch.zeros(classes + 1, width))
        self.augmentation = nn.Linear(velocity.AUGMENTATIONS, width, bias=False)
        self.fc = nn.Linear(width, width)
        steps = torch.arange(features // 2) / (features // 2)
        frequencies = 1000.0 * torch.exp(-math.log(10_000.0) * steps)
        self.register_buffer("frequencies", frequencies)

    def forward(self, time, label, augmentation):
        """Maps `[B]`, `[B]` and `[B, 10]` to `[B, width]`."""
        angles = time[:, None] * self.frequencies
        x = self.time(torch.cat([angles.cos(), angles.sin()], -1))
        x = x + self.label[label] + self.augmentation(augmentation)
        return F.silu(self.fc(F.silu(x)))


class Attention(nn.Module):
    """See `jax_models.velocity.SelfAttention`."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x):
        """Maps `[B, tokens, width]` to the same."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(query, key, value)
        return self.proj(found.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """See `jax_models.flow_unet.Block`."""

    def __init__(self, before, channels, condition, config, attends):
        super().__init__()
        self.norm1 = group_norm(before)
        self.conv1 = nn.Conv2d(before, channels, 3, padding=1)
        self.condition = nn.Linear(condition, 2 * channels)
        self.norm2 = group_norm(channels)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Identity()
        if before != channels:
            self.skip = nn.Conv2d(before, channels, 1)
        self.attention = None
        if attends:
            self.norm3 = group_norm(channels)
            heads = max(channels // config.head_width, 1)
            self.attention = Attention(channels, heads)

    def forward(self, x, condition):
        """Maps `[B, before, h, w]` to `[B, channels, h, w]`."""
        branch = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.condition(condition)[:, :, None, None].chunk(2, 1)
        branch = self.norm2(branch) * (1 + scale) + shift
        x = self.conv2(self.dropout(F.silu(branch))) + self.skip(x)
        if self.attention is not None:
            tokens = self.norm3(x).flatten(2).transpose(1, 2)
            found = self.attention(tokens).transpose(1, 2)
            x = x + found.reshape(x.shape)
        return x


class Down(nn.Conv2d):
    """Halves a map; odd pixels go below and to the right."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, 2)

    def forward(self, x):
        """Maps `[B, C, h, w]` to `[B, C, h / 2, w / 2]`."""
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Conv2d):
    """Doubles a map."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x):
        """Maps `[B, C, h, w]` to `[B, C, 2 h, 2 w]`."""
        return super().forward(F.interpolate(x, scale_factor=2.0))


class FlowUNet(nn.Module):
    """See `jax_models.flow_unet.FlowUNet`."""

    def __init__(self, config: flow_unet.Config, classes: int):
        super().__init__()
        self.patch = config.patch
        widths = [config.width * factor for factor in config.multipliers]
        condition, pixels = 4 * config.width, 3 * config.patch**2
        self.condition = Condition(condition, classes)
        self.stem = nn.Conv2d(pixels, config.width, 3, padding=1)

        def block(before: int, level: int) -> Block:
            attends = level in config.attention
            return Block(before, widths[level], condition, config, attends)

        channels, kept, down, up = config.width, [config.width], [], []
        for level, width in enumerate(widths):
            if level:
                down.append(Down(channels))
                kept.append(channels)
            for _ in range(config.blocks):
                down.append(block(channels, level))
                channels = width
                kept.append(channels)
        last = len(widths) - 1
        middle = [block(channels, last), block(channels, last)]
        for level in reversed(range(len(widths))):
            for _ in range(config.blocks + 1):
                up.append(block(channels + kept.pop(), level))
                channels = widths[level]
            if level:
                up.append(Up(channels))
        self.down, self.middle, self.up = map(nn.ModuleList, (down, middle, up))
        self.norm = group_norm(channels)
        self.paint = nn.Conv2d(channels, pixels, 3, padding=1)

    def forward(self, noisy, time, label, augmentation):
        """Maps `[B, 3, H, W]` and its condition to a velocity."""
        condition = self.condition(time, label, augmentation)
        batch, _, height, width = noisy.shape
        patch = self.patch
        x = noisy
        if patch > 1:  # Pixels of a patch in the order of ours.
            x = x.view(batch, 3, height // patch, patch, width // patch, patch)
            x = x.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)
        x = self.stem(x)
        kept = [x]
        for layer in self.down:
            x = layer(x, condition) if isinstance(layer, Block) else layer(x)
            kept.append(x)
        for layer in self.middle:
            x = layer(x, condition)
        for layer in self.up:
            if isinstance(layer, Block):
                x = layer(torch.cat([x, kept.pop()], 1), condition)
            else:
                x = layer(x)
        x = self.paint(F.silu(self.norm(x)))
        if patch > 1:
            x = x.unflatten(1, (patch, patch, 3)).permute(0, 3, 4, 1, 5, 2)
            x = x.reshape(noisy.shape)
        return velocity_to(x, noisy, time)


def velocity_to(image, noisy, time):
    """See `jax_models.velocity.velocity_to`."""
    return (noisy - image) / time.clamp(min=0.05)[:, None, None, None]


def load(model: FlowUNet, params: Mapping[str, Any]) -> None:
    """Takes weights of ours, a nested dict of parameters, all of them."""
    found = {}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for name, value in node.items():
            if isinstance(value, Mapping):
                walk(value, f"{prefix}{name}.")
                continue
            value = np.asarray(value)
            if name == "kernel":
                turned = (3, 2, 0, 1) if value.ndim == 4 else (1, 0)
                value = value.transpose(turned)
                if prefix.endswith("skip."):
                    value = value[:, :, None, None]
            name = {"kernel": "weight", "scale": "weight"}.get(name, name)
            found[prefix + name] = torch.from_numpy(value.copy())

    walk(params, "")
    found["condition.frequencies"] = model.condition.frequencies
    model.load_state_dict(found)


def augment(images, prob: float, flip: float):
    """See `training.tasks.flow_augmentation.augment`; `[B, 3, H, W]`."""
    count = len(images)
    draws = torch.randn(count, 7)
    scale, aspect, down, across, bright, contrast, turn = (
        draws * (torch.rand(count, 7) < prob)
    ).unbind(1)
    turn = changes.MAX_TURN * torch.erf(turn / math.sqrt(2))
    mirrored = torch.rand(count) < flip
    axis = math.pi * torch.rand(count)
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)

    def rotation(angle):
        cos, sin = angle.cos(), angle.sin()
        rows = torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)
        return torch.stack(rows, 1)

    size = changes.LOG2_SCALE * scale
    along = changes.LOG2_ASPECT * aspect
    stretch = torch.diag_embed(
        2.0 ** torch.stack([-along - size, along - size], -1)
    )
    matrix = rotation(axis) @ stretch @ rotation(-axis) @ rotation(-turn)
    shift = 2 * changes.SHIFT * torch.stack([across, down], -1)[:, :, None]
    theta = torch.cat([matrix, -matrix @ shift], 2)
    grid = F.affine_grid(theta, images.shape, align_corners=True)
    moved = F.grid_sample(
        images, grid, padding_mode="reflection", align_corners=True
    )
    factor = 2.0 ** (changes.LOG2_CONTRAST * contrast)
    moved = moved * factor[:, None, None, None]
    moved = moved + changes.BRIGHTNESS * bright[:, None, None, None]
    parameters = torch.stack(
        [
            mirrored.float(),
            scale,
            turn.cos() - 1,
            turn.sin(),
            aspect * (2 * axis).cos(),
            aspect * (2 * axis).sin(),
            down,
            across,
            bright,
            contrast,
        ],
        -1,
    )
    return moved.clamp(-1, 1), parameters


def train_step(
    model: FlowUNet,
    images: np.ndarray,
    labels: np.ndarray,
    form: str,
    *,
    classes: int,
    generate: Any,
    stage: Any,
) -> Callable[[], torch.Tensor]:
    """Returns a function that makes one step and gives the loss.

    Args:
      model: copied.
      images: uint8 `[B, H, W, 3]`.
      labels: int32 `[B]`.
      form: of `torch_side.FORMS`.
      classes: C.
      generate: `config.generate`.
      stage: of the recipe.
    """
    memory_format, compiled = FORMS[form]
    model = copy.deepcopy(model).to(memory_format=memory_format).train()
    averaged = [p.detach().clone() for p in model.parameters()]
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    known = torch.from_numpy(labels).long()
    parameters = list(model.parameters())
    adam = torch.optim.Adam(parameters, lr=stage.learning_rate, fused=True)
    call = torch.compile(model) if compiled else model

    def step() -> torch.Tensor:
        with torch.no_grad():
            clean = pixels.float() / 127.5 - 1
            clean, parameters_of = augment(
                clean, generate.augment, generate.flip
            )
            clean = clean.to(memory_format=memory_format)
            time = torch.randn(len(clean)) + generate.time_shift
            time = time.sigmoid()
            noise = torch.randn_like(clean)
            dropped = torch.rand(len(clean)) < generate.label_drop
            label = torch.where(dropped, classes, known)
            noisy = torch.lerp(clean, noise, time[:, None, None, None])
        found = call(noisy, time, label, parameters_of)
        loss = F.mse_loss(found, velocity_to(clean, noisy, time))
        adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, stage.clip_norm)
        adam.step()
        torch._foreach_lerp_(
            averaged, [p.detach() for p in parameters], 1 - stage.ema_decay
        )
        return loss

    return step
