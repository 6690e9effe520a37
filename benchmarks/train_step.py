"""Seconds per training step on the CPU: ours beside timm on PyTorch.

    python benchmarks/train_step.py [--models NAME ...] [--write]

float32, batch 64, 64 px, 16 classes: forward, soft cross-entropy, backward,
AdamW with weight decay on matrices and filters alone, stochastic depth and
dropout as in our recipes. Ours is the very step that train.py runs, with its
check for infinite gradients. PyTorch competes with the fastest of its forms
(benchmarks/torch_side.py). Both use every core that the process may use; pin
it (`taskset -c 0`) to measure one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import pairs
from benchmarks.our_side import ModelAtWork

MODELS = (
    "miniconvnext",
    "tinyvit_5m",
    "tinyvit_11m",
    "convnextv2_atto",
    "efficientnetv2_s",
)
CLASSES = 16
RATE, DECAY = 3e-4, 1e-4


def make_batch(batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns float32 images [B, H, W, 3] and smoothed labels [B, C]."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, size, size, 3), np.float32)
    targets = np.full((batch, CLASSES), 0.1 / CLASSES, np.float32)
    targets[np.arange(batch), rng.integers(0, CLASSES, batch)] += 0.9
    return images, targets


def our_step(model: ModelAtWork, batch: int, size: int) -> Callable:
    """Returns a function that makes one step and waits for it."""
    images, targets = make_batch(batch, size)
    return model.train_step(images, targets, RATE, DECAY)


def their_step(
    model: ModelAtWork, batch: int, size: int, forms: tuple[str, ...]
) -> tuple[str, Callable]:
    """Returns the same of PyTorch, and which of `forms` was fastest."""
    import torch

    from benchmarks import torch_side

    torch_side.use_all_cores()
    images, targets = make_batch(batch, size)
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    targets = torch.from_numpy(targets)
    return torch_side.fastest(
        lambda form: torch_side.train_step(
            torch_side.make(
                model.name, CLASSES, model.drop_path_rate, model.dropout
            ),
            images,
            targets,
            form,
            learning_rate=RATE,
            weight_decay=DECAY,
        ),
        forms,
    )


def main() -> None:
    """Prints the table."""
    options = pairs.parse(
        __doc__,
        rounds=9,
        models=dict(nargs="+", default=MODELS),
        batch=dict(type=int, default=64),
        size=dict(type=int, default=64),
        forms=pairs.FORMS_FLAG,
    )
    rows, ratios = [], []
    for name in options.models:
        model = ModelAtWork(name, CLASSES)
        form, theirs = their_step(
            model, options.batch, options.size, options.forms
        )
        ours = our_step(model, options.batch, options.size)
        found = pairs.alternate(
            {
                "ours": lambda work=ours: pairs.seconds(work, options.clock),
                "theirs": lambda work=theirs: pairs.seconds(
                    work, options.clock
                ),
            },
            options.rounds,
        )
        ratio = pairs.times_faster(found["ours"], found["theirs"])
        ratios.append(ratio)
        rows.append(
            (
                name,
                found["ours"].describe(".0f", 1e3),
                found["theirs"].describe(".0f", 1e3),
                form,
                f"{ratio:.2f}",
            )
        )
        print(*rows[-1], sep=" | ", flush=True)
    text = pairs.table(
        ("model", "ours, ms", "PyTorch, ms", "its form", "times faster"), rows
    )
    text += (
        f"\n\nBatches of {options.batch}, {options.size} px. Geometric mean: "
        f"{pairs.geometric_mean(ratios):.2f}. Times are {options.clock} time."
    )
    machine = pairs.describe_machine("jax", "torch", "timm")
    pairs.publish("train_step", text, machine, options.write)


if __name__ == "__main__":
    main()
