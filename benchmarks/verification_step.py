"""Seconds per step of metric learning on the CPU: ours beside OML on PyTorch.

    python benchmarks/verification_step.py [--shapes PxKxSIZE ...]
        [--miners all hard]

float32, ResNet-34 without its last layer, unit vectors, triplets with a margin
of .1 among P identities of K pictures, AdamW: open-metric-learning's
`TripletLossWithMiner` over torchvision's network, and the very step that
train.py runs. PyTorch competes with the fastest of its forms
(benchmarks/torch_side.py). The second part is the loss with its gradient
alone, on given embeddings. With `--clock cpu`, set OMP_WAIT_POLICY=passive, or
PyTorch's idle threads count as work.

Needs open-metric-learning beside requirements-torch.txt (`pip install --no-deps
open-metric-learning`, and what its import asks for).
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
from training.loop import optimizer, param_groups, state, step
from training.multihost import sharding
from training.tasks import metric_objective

SHAPES = ("8x4x112",)
MINERS = ("all", "hard")
MARGIN, WIDTH = 0.1, 512
RATE, DECAY = 3e-4, 1e-4
LOG_EVERY = 20


def make_batch(
    identities: int, pictures: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns float32 images [B, H, W, 3] and int32 labels [B]."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(identities, dtype=np.int32), pictures)
    shape = len(labels), size, size, 3
    return rng.standard_normal(shape, np.float32), labels


def our_steps(
    images: np.ndarray, labels: np.ndarray, miner: str
) -> tuple[Callable, Callable]:
    """Returns what makes one step of training, and the loss alone."""
    hardware.keep_freed_memory()
    mesh = sharding.make_mesh()
    model = state.make_abstract_model(
        lambda: jax_models.create_model(
            "embedding", 0, encoder="resnet34", width=0
        )
    )
    weights = state.init_weights(model, mesh)
    batch = {
        "image": images,
        "label": labels,
        "weight": np.ones(len(labels), np.float32),
    }
    placed = sharding.put_batch(batch, mesh)
    stage = common.stage(
        schedule="constant", learning_rate=RATE, weight_decay=DECAY
    )
    options = {"margin": MARGIN, "miner": miner}
    term = metric_objective.make_metric_loss("triplet", options)

    def loss(model: nnx.Module, batch: dict, constants: dict) -> jax.Array:
        embedding = model.embed(batch["image"]).embedding
        return term(embedding, batch["label"], batch["weight"])[0]

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
    now = state.start_stage(0, *weights, stage, mesh)

    def train() -> None:
        nonlocal now
        now, _ = train_step(now, placed)
        jax.block_until_ready(now)

    embeddings = jnp.asarray(make_embeddings(len(labels)))
    alone = jax.jit(jax.value_and_grad(lambda x, *rest: term(x, *rest)[0]))

    def only_loss() -> None:
        found = alone(embeddings, placed["label"], placed["weight"])
        jax.block_until_ready(found)

    only_loss()
    return train, only_loss


def make_embeddings(rows: int) -> np.ndarray:
    """Returns unit vectors, float32 [rows, WIDTH]."""
    rng = np.random.default_rng(1)
    found = rng.standard_normal((rows, WIDTH), np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def their_steps(
    images: np.ndarray, labels: np.ndarray, miner: str, forms: tuple[str, ...]
) -> tuple[tuple[str, Callable], Callable]:
    """Returns the same of PyTorch: the fastest form with its step; the loss."""
    import torch

    from benchmarks import torch_side  # First: it lets torchvision load.

    # isort: split
    import torchvision
    from oml.losses.triplet import TripletLossWithMiner
    from oml.miners.inbatch_all_tri import AllTripletsMiner
    from oml.miners.inbatch_hard_tri import HardTripletsMiner

    torch_side.use_all_cores()
    miners = {"all": AllTripletsMiner, "hard": HardTripletsMiner}
    loss_of = TripletLossWithMiner(MARGIN, miners[miner]())
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    wanted = torch.from_numpy(labels).long()

    def build(form: str) -> Callable[[], object]:
        memory_format, compiled = torch_side.FORMS[form]
        model = torchvision.models.resnet34()
        model.fc = torch.nn.Identity()
        model = model.to(memory_format=memory_format).train()
        batch = pixels.to(memory_format=memory_format)
        adam = torch.optim.AdamW(
            model.parameters(), lr=RATE, weight_decay=DECAY, fused=True
        )
        call = torch.compile(model) if compiled else model

        def train() -> None:
            embeddings = torch.nn.functional.normalize(call(batch))
            loss = loss_of(embeddings, wanted)
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()

        return train

    embeddings = torch.from_numpy(make_embeddings(len(labels)))
    embeddings.requires_grad_()

    def only_loss() -> None:
        embeddings.grad = None
        loss_of(embeddings, wanted).backward()

    return torch_side.fastest(build, forms), only_loss


def main() -> None:
    """Prints the table."""
    options = pairs.parse(
        __doc__,
        rounds=7,
        shapes=dict(
            nargs="+",
            default=SHAPES,
            help="identities, pictures of each, and their side",
        ),
        miners=dict(nargs="+", default=MINERS, choices=MINERS),
        forms=pairs.FORMS_FLAG,
    )
    rows = []
    for shape, miner in itertools.product(options.shapes, options.miners):
        identities, pictures, size = map(int, shape.split("x"))
        images, labels = make_batch(identities, pictures, size)
        theirs = their_steps(images, labels, miner, tuple(options.forms))
        (form, their_train), their_loss = theirs
        our_train, our_loss = our_steps(images, labels, miner)
        for what, ours, their, repeats in (
            (f"step, {size} px", our_train, their_train, 1),
            ("loss alone", our_loss, their_loss, 20),
        ):
            found = pairs.alternate(
                {
                    name: lambda work=work, repeats=repeats: pairs.seconds(
                        work, options.clock, repeats
                    )
                    for name, work in (("ours", ours), ("theirs", their))
                },
                options.rounds,
            )
            ratio = pairs.times_faster(found["ours"], found["theirs"])
            digits = ".0f" if repeats == 1 else ".1f"
            rows.append(
                (
                    what,
                    f"{identities} of {pictures}",
                    miner,
                    found["ours"].describe(digits, 1e3),
                    found["theirs"].describe(digits, 1e3),
                    form if repeats == 1 else "eager",
                    f"{ratio:.2f}",
                )
            )
            print(*rows[-1], sep=" | ", flush=True)
    head = "", "batch", "miner", "ours, ms", "OML, ms", "its form"
    text = pairs.table((*head, "times faster"), rows)
    text += f"\n\nTimes are {options.clock} time."
    machine = pairs.describe_machine("jax", "torch", "open-metric-learning")
    pairs.publish("verification_step", text, machine, options.write)


if __name__ == "__main__":
    main()
