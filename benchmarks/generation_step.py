"""Seconds per step of the flow on the CPU: ours beside PyTorch.

    python benchmarks/generation_step.py [--recipes demo short]

float32, the U-Net of configs/flow.py at the sizes of its variants, and the
very step that train.py runs: augmentation as a condition, logit-normal times,
label dropping, clipping, Adam, moving average. PyTorch's side is
benchmarks/generation_torch.py with the same weights, in the fastest of its
forms (benchmarks/torch_side.py); both networks are first shown to give the
same velocities. With `--clock cpu`, set OMP_WAIT_POLICY=passive, or PyTorch's
idle threads count as work.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
from flax import nnx
from ml_collections import ConfigDict

from benchmarks import pairs
from configs import flow
from core import hardware
from jax_models import flow_unet
from training.loop import optimizer, param_groups, state, step
from training.loop.stages import Stage
from training.multihost import sharding
from training.tasks.generate import Generation

CLASSES = 10
LOG_EVERY = 50
LIMIT = 1e-3  # of the difference of two velocities, which are about 1


def make_batch(size: int, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns uint8 images [B, H, W, 3] and int32 labels [B]."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, size).astype(np.int32)
    shape = size, image_size, image_size, 3
    return rng.integers(0, 256, shape).astype(np.uint8), labels


def our_step(
    config: ConfigDict, images: np.ndarray, labels: np.ndarray
) -> tuple[Callable, nnx.Module]:
    """Returns what makes one step of training, and the network."""
    hardware.keep_freed_memory()
    mesh = sharding.make_mesh()
    task = Generation(config, tuple(map(str, range(CLASSES))))
    stage = Stage(0, config.stages[0], 0, 10_000, 1000, 10)
    weights = state.init_weights(task.abstract_model, mesh)
    # What starts at 0 would hide the inner layers.
    draw = np.random.default_rng(1)
    loud = jax.tree.map(
        lambda x: (
            np.asarray(x)
            + 0.02 * draw.standard_normal(x.shape, dtype=np.float32)
        ),
        weights[0],
    )
    params = sharding.put_constants(loud, mesh)
    groups = param_groups.assign(params, stage.config)
    train_step = step.make_train_step(
        task.abstract_model,
        task.loss(stage, mesh),
        stage.config,
        optimizer.rate_tables(stage.config, groups, optimizer.TABLE_UNIT, 1),
        mesh,
        seed=0,
        log_every_steps=LOG_EVERY,
    )
    batch = {
        "image": images,
        "label": labels,
        "weight": np.ones(len(labels), np.float32),
    }
    placed = sharding.put_batch(batch, mesh)
    model = task.abstract_model.merge(jax.tree.map(np.array, loud), weights[1])
    now = state.start_stage(0, params, weights[1], stage.config, mesh)

    def train() -> None:
        nonlocal now
        now, _ = train_step(now, placed)
        jax.block_until_ready(now)

    return train, model


def their_step(
    config: ConfigDict,
    model: nnx.Module,
    images: np.ndarray,
    labels: np.ndarray,
    forms: tuple[str, ...],
) -> tuple[str, Callable, float]:
    """Returns PyTorch's fastest form with its step, and the difference of
    the velocities."""
    import torch

    from benchmarks import generation_torch, torch_side

    torch_side.use_all_cores()
    options = flow_unet.VARIANTS[config.model]
    options = dataclasses.replace(options, **config.model_options)
    theirs = generation_torch.FlowUNet(options, CLASSES)
    _, params, *_ = nnx.split(model, nnx.Param, ...)
    generation_torch.load(theirs, nnx.to_pure_dict(params))
    rng = np.random.default_rng(2)
    noisy = rng.standard_normal(images.shape, dtype=np.float32)[:4]
    time = np.linspace(0.1, 1, 4, dtype=np.float32)
    told = rng.standard_normal((4, 10), dtype=np.float32)
    model.eval()
    ours = np.asarray(model(noisy, time, labels[:4], told))
    with torch.no_grad():
        given = torch.from_numpy(noisy).permute(0, 3, 1, 2)
        found = theirs.eval()(
            given,
            torch.from_numpy(time),
            torch.from_numpy(labels[:4]).long(),
            torch.from_numpy(told),
        )
    difference = np.abs(found.permute(0, 2, 3, 1).numpy() - ours).max()
    if difference > LIMIT:
        raise SystemExit(f"velocities differ by {difference:.2g}")

    def build(form: str) -> Callable[[], object]:
        return generation_torch.train_step(
            theirs,
            images,
            labels,
            form,
            classes=CLASSES,
            generate=config.generate,
            stage=config.stages[0],
        )

    return *torch_side.fastest(build, forms), float(difference)


def main() -> None:
    """Prints the table."""
    options = pairs.parse(
        __doc__,
        rounds=9,
        recipes=dict(nargs="+", default=("demo", "short")),
        forms=pairs.FORMS_FLAG,
    )
    rows = []
    for variant in options.recipes:
        config = flow.get_config(variant)
        batch_size = config.stages[0].batch_size
        images, labels = make_batch(batch_size, config.image_size)
        ours, model = our_step(config, images, labels)
        form, theirs, difference = their_step(
            config, model, images, labels, tuple(options.forms)
        )
        found = pairs.alternate(
            {
                name: lambda work=work: pairs.seconds(work, options.clock, 3)
                for name, work in (("ours", ours), ("theirs", theirs))
            },
            options.rounds,
        )
        ratio = pairs.times_faster(found["ours"], found["theirs"])
        rows.append(
            (
                f":{variant}, {config.image_size} px",
                batch_size,
                found["ours"].describe(".0f", 1e3),
                found["theirs"].describe(".0f", 1e3),
                form,
                f"{ratio:.2f}",
                f"{difference:.0e}",
            )
        )
        print(*rows[-1], sep=" | ", flush=True)
    head = "", "batch", "ours, ms", "PyTorch, ms", "its form", "times faster"
    text = pairs.table((*head, "velocities differ by"), rows)
    text += f"\n\nTimes are {options.clock} time."
    machine = pairs.describe_machine("jax", "torch")
    pairs.publish("generation_step", text, machine, options.write)


if __name__ == "__main__":
    main()
