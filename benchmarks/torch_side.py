"""The same models in PyTorch, tuned as somebody who cares would.

timm's networks with our recipes' stochastic depth, float32, channels_last
where it helps, torch.compile (inductor) where it helps, the fused AdamW, and
every core that this process may use. `fastest` tries these forms on the
machine at hand; only the best one competes.

Importing this module imports torch and timm (requirements-torch.txt).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

# timm imports torchvision, whose compiled operators are missing beside a
# CPU-only torch; their names suffice.
if not torch.cuda.is_available():
    _LIBRARY = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _LIBRARY.define(
            f"{_name}(Tensor dets, Tensor scores, float iou_threshold)"
            " -> Tensor"
        )

import timm
from timm.models import convnext

from benchmarks.torch_stems import make_small
from core.hardware import usable_cores

# Ours -> timm's; None where timm has no such model and `make` builds it.
NAMES = {
    "miniconvnext": None,
    "tinyvit_5m": "tiny_vit_5m_224",
    "tinyvit_11m": "tiny_vit_11m_224",
    "convnextv2_atto": "convnextv2_atto",
    "convnextv2_small": None,
    "convnextv2_base": "convnextv2_base",
    "efficientnetv2_s": "tf_efficientnetv2_s",
    "efficientnetv2_m": "tf_efficientnetv2_m",
    "efficientnet_b0": "tf_efficientnet_b0",
    "mobilenetv2": "mobilenetv2_100",
    "densenet121": "densenet121",
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "efficientnet_lite0": "tf_efficientnet_lite0",
    "efficientnet_lite1": "tf_efficientnet_lite1",
    "efficientnet_lite2": "tf_efficientnet_lite2",
}

# Behind a name: with the stem for images of 32 px.
SMALL = " small"

# What `fastest` tries: (memory format, whether to compile).
FORMS = {
    "eager": (torch.contiguous_format, False),
    "eager, channels_last": (torch.channels_last, False),
    "compiled, channels_last": (torch.channels_last, True),
}


class _ThreeStages(torch.nn.Module):
    """MiniConvNeXt: the first three stages of a ConvNeXt, and a head."""

    def __init__(self, classes: int, drop_path: float):
        super().__init__()
        whole = convnext.ConvNeXt(
            depths=(2, 2, 2, 1),
            dims=(64, 128, 256, 8),
            num_classes=classes,
            ls_init_value=None,
            drop_path_rate=drop_path,
        )
        self.stem = whole.stem
        self.stages = whole.stages[:3]
        self.head = convnext.NormMlpClassifierHead(
            256, classes, norm_layer=convnext.LayerNorm2d
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[B, 3, H, W]` to logits."""
        return self.head(self.stages(self.stem(x)))


def use_all_cores() -> None:
    """Gives torch as many threads as XLA takes."""
    torch.set_num_threads(usable_cores())


def make(
    name: str, classes: int, drop_path: float = 0.0, dropout: float = 0.0
) -> torch.nn.Module:
    """Returns the counterpart of our model `name`, freshly initialised."""
    if name.endswith(SMALL):
        whole = name.removesuffix(SMALL)
        return make_small(make(whole, classes, drop_path, dropout))
    if name == "miniconvnext":
        return _ThreeStages(classes, drop_path)
    if name == "convnextv2_small":
        return convnext.ConvNeXt(
            depths=(3, 3, 27, 3),
            dims=(96, 192, 384, 768),
            num_classes=classes,
            use_grn=True,
            ls_init_value=None,
            drop_path_rate=drop_path,
        )
    options = dict(drop_path_rate=drop_path, drop_rate=dropout)
    if name == "densenet121":
        del options["drop_path_rate"]
    if name.startswith("efficientnet"):
        # TensorFlow's momentum .99 is PyTorch's .01.
        options |= dict(bn_eps=1e-3, bn_momentum=0.01)
    return timm.create_model(NAMES[name], num_classes=classes, **options)


def train_step(
    model: torch.nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor,
    form: str,
    *,
    learning_rate: float,
    weight_decay: float,
    autocast: torch.dtype | None = None,
) -> Callable[[], torch.Tensor]:
    """Returns a function that makes one step of AdamW and gives the loss.

    Args:
      model: changed in place, in memory format and weights.
      images: float32 [B, 3, H, W] on the model's device.
      targets: float32 [B, C].
      form: of `FORMS`.
      learning_rate: of AdamW.
      weight_decay: on matrices and filters alone, as ours.
      autocast: narrower type for what PyTorch thinks it suits.
    """
    memory_format, compiled = FORMS[form]
    model = model.to(memory_format=memory_format).train()
    images = images.to(memory_format=memory_format)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2]},
            {
                "params": [p for p in parameters if p.ndim < 2],
                "weight_decay": 0.0,
            },
        ],
        lr=learning_rate,
        weight_decay=weight_decay,
        fused=True,
    )
    call = torch.compile(model) if compiled else model

    def step() -> torch.Tensor:
        with torch.autocast(
            images.device.type, autocast, enabled=autocast is not None
        ):
            loss = torch.nn.functional.cross_entropy(call(images), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    return step


def inference(
    model: torch.nn.Module, images: torch.Tensor, form: str
) -> Callable[[], torch.Tensor]:
    """Returns a function that gives the logits of `images`; see above."""
    memory_format, compiled = FORMS[form]
    model = model.to(memory_format=memory_format).eval()
    images = images.to(memory_format=memory_format)
    call = torch.compile(model) if compiled else model

    def logits() -> torch.Tensor:
        with torch.inference_mode():
            return call(images)

    return logits


def fastest(
    build: Callable[[str], Callable[[], object]],
    forms: tuple[str, ...] = tuple(FORMS),
    trials: int = 3,
) -> tuple[str, Callable[[], object]]:
    """Returns the form that is fastest here, and its work.

    Args:
      build: form -> what is to be timed.
      forms: which to try.
      trials: timed calls of each, of which the fastest counts.
    """
    works, best = {}, {}
    for form in forms:
        torch.compiler.reset()
        works[form] = build(form)
        works[form]()  # Compiles, and settles the memory.
        best[form] = min(_time(works[form]) for _ in range(trials))
    form = min(best, key=best.get)
    return form, works[form]


def _time(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start
