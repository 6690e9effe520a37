"""Seconds per step of segmentation on the CPU: ours beside smp on PyTorch.

    python benchmarks/segmentation_step.py [--networks NAME/ENCODER ...]
        [--shapes BATCHxSIZE ...]

float32, 3 classes; training (forward, mean cross-entropy over
pixels, backward, AdamW) and evaluation (logits alone). DeepLabV3+ is wired as
in smp on both sides. Ours is the very step that train.py runs. PyTorch
competes with the fastest of its forms (benchmarks/torch_side.py).

Needs segmentation-models-pytorch beside requirements-torch.txt.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
from flax import nnx

import jax_models
from benchmarks import pairs
from configs import common
from core import hardware
from jax_models import cpu_kernels
from training.loop import optimizer, param_groups, state, step
from training.multihost import sharding

NETWORKS = (
    "unet/resnet34",
    "deeplabv3plus/resnet50",
    "unet/efficientnet_lite0",
)
# What smp calls encoders of other names than ours.
ENCODERS = {"efficientnet_lite0": "tu-tf_efficientnet_lite0"}
SHAPES = ("16x128", "8x256")
CLASSES = 3
RATE, DECAY = 3e-4, 1e-4
LOG_EVERY = 20


def make_batch(batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns float32 images [B, H, W, 3] and int32 masks [B, H, W]."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, size, size, 3), np.float32)
    return images, rng.integers(0, CLASSES, (batch, size, size), np.int32)


def our_steps(name: str, batch: int, size: int) -> tuple[Callable, Callable]:
    """Returns what makes one step of training, and one of evaluation."""
    hardware.keep_freed_memory()
    network, encoder = name.split("/")
    options = {"wiring": "smp"} if network == "deeplabv3plus" else {}
    mesh = sharding.make_mesh()
    model = state.make_abstract_model(
        lambda: jax_models.create_model(
            network, CLASSES, encoder=encoder, **options
        )
    )
    weights = state.init_weights(model, mesh)
    images, masks = make_batch(batch, size)
    placed = sharding.put_batch({"image": images, "mask": masks}, mesh)
    stage = common.stage(
        schedule="constant", learning_rate=RATE, weight_decay=DECAY
    )

    def loss(model: nnx.Module, batch: dict, constants: dict) -> jax.Array:
        log_shares = jax.nn.log_softmax(model(batch["image"]))
        masks = jax.nn.one_hot(batch["mask"], CLASSES)
        return -(log_shares * masks).sum(-1).mean()

    groups = param_groups.assign(nnx.to_pure_dict(model.params), stage)
    train_step = step.make_train_step(
        model,
        step.Loss(loss, {}),
        stage,
        optimizer.rate_tables(stage, groups, optimizer.TABLE_UNIT, 1),
        mesh,
        seed=0,
        log_every_steps=LOG_EVERY,
    )
    copies = jax.tree.map(jnp.copy, weights)  # The step takes them.
    now = state.start_stage(0, *copies, stage, mesh)

    def train() -> None:
        nonlocal now
        now, _ = train_step(now, placed)
        jax.block_until_ready(now)

    @jax.jit
    @cpu_kernels.for_mesh(mesh)
    def logits(params, batch_stats, images):
        built = model.merge(params, batch_stats)
        built.eval()
        return built(images)

    def evaluate() -> None:
        jax.block_until_ready(logits(*weights, placed["image"]))

    return train, evaluate


def their_steps(
    name: str, batch: int, size: int, forms: tuple[str, ...]
) -> tuple[tuple[str, Callable], tuple[str, Callable]]:
    """Returns the same of smp, each with the form that was fastest."""
    import torch

    from benchmarks import torch_side  # First: it lets torchvision load.

    import segmentation_models_pytorch as smp  # isort: skip

    torch_side.use_all_cores()
    network, encoder = name.split("/")
    make_network = {"unet": smp.Unet, "deeplabv3plus": smp.DeepLabV3Plus}

    def make() -> torch.nn.Module:
        return make_network[network](
            ENCODERS.get(encoder, encoder),
            encoder_weights=None,
            classes=CLASSES,
        )

    images, masks = make_batch(batch, size)
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    masks = torch.from_numpy(masks).long()
    return (
        torch_side.fastest(
            lambda form: torch_side.train_step(
                make(),
                images,
                masks,
                form,
                learning_rate=RATE,
                weight_decay=DECAY,
            ),
            forms,
        ),
        torch_side.fastest(
            lambda form: torch_side.inference(make(), images, form), forms
        ),
    )


def main() -> None:
    """Prints the table."""
    options = pairs.parse(
        __doc__,
        rounds=9,
        networks=dict(nargs="+", default=NETWORKS),
        shapes=dict(
            nargs="+", default=SHAPES, help="images of a batch, and their side"
        ),
        forms=pairs.FORMS_FLAG,
    )
    rows = []
    for name, shape in itertools.product(options.networks, options.shapes):
        batch, size = map(int, shape.split("x"))
        theirs = their_steps(name, batch, size, options.forms)
        ours = our_steps(name, batch, size)
        for what, our, (form, their) in zip(
            ("train", "evaluate"), ours, theirs, strict=True
        ):
            found = pairs.alternate(
                {
                    "ours": lambda work=our: pairs.seconds(work, options.clock),
                    "theirs": lambda work=their: pairs.seconds(
                        work, options.clock
                    ),
                },
                options.rounds,
            )
            ratio = pairs.times_faster(found["ours"], found["theirs"])
            rows.append(
                (
                    name,
                    f"{batch} of {size} px",
                    what,
                    found["ours"].describe(".0f", 1e3),
                    found["theirs"].describe(".0f", 1e3),
                    form,
                    f"{ratio:.2f}",
                )
            )
            print(*rows[-1], sep=" | ", flush=True)
    text = pairs.table(
        (
            "network",
            "images",
            "step",
            "ours, ms",
            "smp, ms",
            "its form",
            "times faster",
        ),
        rows,
    )
    text += f"\n\nTimes are {options.clock} time."
    machine = pairs.describe_machine("jax", "torch")
    pairs.publish("segmentation_step", text, machine, options.write)


if __name__ == "__main__":
    main()
