"""What growing from 1 to 8, 64 and 512 chips costs, from compiled programs.

    python benchmarks/scaling.py [--weak | --paper]
    python benchmarks/scaling.py RECIPE...

prints the tables of docs/scaling.md, both or one of them; or, for recipes
named, the bytes of their own 8-device steps, minutes of compilation each.

On the 8 devices that this machine's CPU is divided into, the demo models are
compiled at 1, 2, 4 and 8 devices with 8 rows on each (weak scaling): XLA's
count of work per device has to stay the same. The collectives in the compiled
8-device programs are counted byte by byte, and compared with what follows
from the shapes alone:

    data:  the gradients of all parameters, summed (all-reduce); and for each
           BatchNorm of C channels its mean and variance, 2 C numbers
    fsdp:  each split parameter is gathered (all-gather) and its gradient is
           summed and split (counted as the all-reduce that XLA's CPU backend
           makes of it; accelerators make a reduce-scatter of half the bytes)

The tables for the six models of the recipes follow from their shapes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["JAX_PLATFORMS"] = "cpu"
# Compiled quickly: nothing is run.
os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    )
)


import jax
import numpy as np
from flax import nnx

import jax_models
from configs import loading
from input_pipeline.transforms.mixing import Mixing
from jax_models import costs, cpu_kernels
from training import chips, collectives, hlo, memory_plan
from training.loop import stages, state
from training.loop.step import Loss
from training.multihost import sharding
from training.tasks.classify import make_prepare
from training.tasks.losses import make_loss

ROWS_PER_DEVICE = 8
CLASSES = 16
CHIPS = (8, 64, 512)

DEMOS = ("miniconvnext", "efficientnetv2", "tinyvit", "convnextv2_small")
RECIPES = {
    "miniconvnext": "MiniConvNeXt",
    "tinyvit": "TinyViT-11M",
    "tinyvit_ssl": "TinyViT-11M after MAE",
    "efficientnetv2": "EfficientNetV2-M",
    "convnextv2_small": "ConvNeXt V2 Small",
    "convnextv2_base": "ConvNeXt V2 Base",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a chip is taken to do; sources and reasons: docs/scaling.md.

    Attributes:
      peak: bf16 FLOP/s.
      reached: the share of it that a training step reaches.
      ring: bytes/s that a chip sends, and receives, in a ring.
      latency: seconds that a collective of few bytes takes, by chips.
    """

    peak: float
    reached: float
    ring: float
    latency: dict[int, float]


_V5E, _H200 = chips.CHIPS["v5e"], chips.CHIPS["h200"]
TPU_V5E = Chip(_V5E.peak, 0.40, 2 * _V5E.link, {8: 5e-6, 64: 10e-6, 512: 40e-6})
H200 = Chip(790e12, 0.25, _H200.link, {8: 15e-6})  # The peak was measured.


def compiled_step(recipe: str, data: int, fsdp: int):
    """Returns the compiled step of a recipe on data x fsdp devices."""
    config = loading.load(f"{ROOT}/configs/{recipe}")
    mesh = sharding.make_mesh(fsdp, jax.devices()[: data * fsdp])

    def build():
        return jax_models.create_model(config.model, CLASSES, nnx.Rngs(0))

    abstract_model = state.make_abstract_model(build)
    stage = stages.plan_stages(config, 1000)[0]
    stage.config.batch_size = ROWS_PER_DEVICE * mesh.size
    stage.config.ema_decay = 0.0
    constants = {
        "mean": jax.numpy.zeros(3),
        "std": jax.numpy.ones(3),
        "log_prior": jax.numpy.zeros(CLASSES),
        "class_weights": jax.numpy.ones(CLASSES),
    }
    loss = Loss(make_loss(stage.config), constants, make_prepare(Mixing()))
    side = config.image_size
    batch = {
        "image": np.zeros((1, side, side, 3), np.uint8),
        "label": np.zeros(1, np.int32),
        "weight": np.zeros(1, np.float32),
    }
    with cpu_kernels.xla_only():  # What accelerators compute.
        lowered = memory_plan.lower(abstract_model, loss, stage, mesh, batch)
    return abstract_model, mesh, lowered.compile()


def collective_bytes(step, mesh) -> dict[str, int]:
    """Returns bytes of the results of each kind of collective in a step."""
    found = collectives.collectives(*hlo.parse(step.as_text()), mesh.size)
    return {kind: each.size for kind, each in found.items()}


def expected(abstract_model: state.AbstractModel, mesh) -> dict[str, int]:
    """Returns bytes per kind of collective that follow from the shapes."""
    params = nnx.to_pure_dict(abstract_model.params)
    laid_out = jax.tree.leaves(sharding.with_shardings(params, mesh))
    whole = sum(4 * math.prod(leaf.shape) for leaf in laid_out)
    split = sum(
        4 * math.prod(leaf.shape)
        for leaf in laid_out
        if leaf.sharding.shard_shape(leaf.shape) != leaf.shape
    )
    norms = sum(
        4 * leaf.size for leaf in jax.tree.leaves(abstract_model.batch_stats)
    )
    return {"all-reduce": whole + norms, "all-gather": split}


def weak_scaling() -> None:
    """Prints FLOPs and collectives per device of the demo models."""
    print(
        "| model | layout | FLOPs per device | of 1 device | all-reduce KB | "
        "from shapes | all-gather KB | from shapes |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for recipe in DEMOS:
        one = None
        for data, fsdp in ((1, 1), (2, 1), (4, 1), (8, 1), (2, 4)):
            name = f"{recipe}.py:demo"
            abstract_model, mesh, step = compiled_step(name, data, fsdp)
            flops = step.cost_analysis()["flops"]
            one = one or flops
            cells = [f"{recipe} demo", f"{data} x {fsdp}", f"{flops:.4g}"]
            cells.append(f"{flops / one:.3f}")
            found = collective_bytes(step, mesh)
            due = expected(abstract_model, mesh)
            for kind in ("all-reduce", "all-gather"):
                cells.append(f"{found.get(kind, 0) / 1e3:,.1f}")
                alone = data * fsdp == 1
                cells.append("0" if alone else f"{due[kind] / 1e3:,.1f}")
            other = set(found) - {"all-reduce", "all-gather"}
            note = " ".join(f"{k} {found[k] / 1e3:,.1f}" for k in sorted(other))
            cells[-1] += f" ({note} besides)" if note else ""
            print("| " + " | ".join(cells) + " |", flush=True)


def full_models() -> None:
    """Prints bytes per step and the efficiency to expect of six models."""
    print(
        "| model | parameters | norms to sum | data: MB summed | data: MB "
        "through a chip of 8, 64, 512 | fsdp: the same | rows per chip | "
        "v5e 8, 64, 512 | 8 x H200 |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for recipe, name in RECIPES.items():
        config = loading.load(f"{ROOT}/configs/{recipe}.py")
        build = functools.partial(
            jax_models.create_model, config.model, CLASSES
        )
        model = nnx.eval_shape(build)
        parameters = jax.tree.leaves(nnx.state(model, nnx.Param))
        count = sum(leaf.size for leaf in parameters)
        stats = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
        norms = len(stats) // 2  # A mean and a variance each.
        summed = 4 * (count + sum(leaf.size for leaf in stats))
        # Forward once, backward twice; a multiply-add is two FLOPs.
        flops = 6 * costs.measure(model, config.image_size).multiply_adds
        batch = config.stages[0].batch_size
        rings = {n: 2 * (n - 1) / n * summed for n in CHIPS}
        split = sum(
            4 * leaf.size
            for leaf in parameters
            if leaf.size >= sharding.MIN_SHARDED_SIZE
        )
        # Gathered before the step; gradients summed and scattered after it.
        sharded = [
            (n - 1) / n * (2 * split + 2 * (summed - split)) for n in CHIPS
        ]
        # Sums forward, and sums backward.
        due = flops * batch, 2 * norms
        tpu = [efficiency(TPU_V5E, *due, n, rings[n]) for n in CHIPS]
        gpu = efficiency(H200, *due, 8, rings[8])
        cells = [
            name,
            f"{count:,}",
            f"{norms}",
            f"{summed / 1e6:,.0f}",
            ", ".join(f"{ring / 1e6:,.0f}" for ring in rings.values()),
            ", ".join(f"{ring / 1e6:,.0f}" for ring in sharded),
            f"{batch}",
            ", ".join(f"{share:.0%}" for share in tpu),
            f"{gpu:.0%}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def compiled_models(recipes: list[str]) -> None:
    """Prints the bytes in the compiled 8-device steps of whole recipes."""
    print(
        "| model | data: all-reduce MB | from shapes | fsdp: all-gather MB | "
        "from shapes | all-reduce MB |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for recipe in recipes:
        cells = [RECIPES[recipe]]
        for layout, kinds in (
            ((8, 1), ("all-reduce",)),
            ((1, 8), ("all-gather", "all-reduce")),
        ):
            abstract_model, mesh, step = compiled_step(f"{recipe}.py", *layout)
            found = collective_bytes(step, mesh)
            due = expected(abstract_model, mesh)
            for kind in kinds:
                cells.append(f"{found.get(kind, 0) / 1e6:,.1f}")
                cells.append(f"{due[kind] / 1e6:,.1f}")
        # The sum of fsdp is that of data once more.
        print("| " + " | ".join(cells[:-1]) + " |", flush=True)


def efficiency(
    chip: Chip, flops: float, small: int, chips: int, sent: float
) -> float:
    """Returns the share of the time that computes, nothing overlapping.

    Args:
      chip: of which kind.
      flops: of a step on one chip.
      small: collectives of few bytes in a step.
      chips: how many there are.
      sent: bytes through each chip in a step.
    """
    compute = flops / (chip.peak * chip.reached)
    waits = sent / chip.ring + small * chip.latency[chips]
    return compute / (compute + waits)


if __name__ == "__main__":
    named = [word for word in sys.argv[1:] if not word.startswith("--")]
    if named:
        compiled_models(named)
    elif "--paper" not in sys.argv:
        weak_scaling()
    if not named and "--weak" not in sys.argv:
        full_models()
