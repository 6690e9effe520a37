"""How far every model is from its counterpart in PyTorch, as two tables.

    python benchmarks/parity.py [NAME ...]

Against the goldens of tests/jax_models (timm 1.0.31, torchvision 0.29,
segmentation_models_pytorch 0.6.0, torch 2.13): the largest difference between
logits at each size, in float32 and evaluation mode; and in training mode the
largest difference of the loss, the logits, the gradients (of the images and of
a few parameters) and BatchNorm's updated statistics, each as a share of the
largest value there. The goldens of the training mode are float64, and so is
the last column: it has no rounding to hide behind.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "jax_models")]

import golden_models
import golden_recipe as recipe

from jax_models import costs


def golden_of(name):
    """What PyTorch gave."""
    return np.load(ROOT / "tests" / "jax_models" / "goldens" / f"{name}.npz")


def logits_apart(model, golden, sizes):
    """The largest difference at each size, in evaluation mode."""
    model.eval()
    for height, width in sizes:
        with golden_models.compiled_blocks():
            logits = model(jnp.asarray(recipe.images(1, height, width, 3)))
        expected = golden[f"logits {height}x{width}"]
        if logits.ndim == 4:  # Of every pixel, sampled.
            logits = recipe.sample(logits, len(expected))
        yield np.abs(logits - expected).max()


def training_apart(model, golden, shape):
    """The largest share, of all that the training mode gives."""
    found = golden_models.training_step(model, shape)
    return max(
        np.abs(value - golden[key]).max() / max(np.abs(golden[key]).max(), 1e-6)
        for key, value in found.items()
    )


def in_training(load, name):
    """Cells for the training mode, in float32 and in float64."""
    golden, shape = golden_of(name), recipe.close_look(name)
    if name in recipe.LOGITS_ONLY:
        yield from ("", "")
        return
    yield f"{training_apart(load(name), golden, shape):.0e}"
    with jax.enable_x64(True):
        model = load(name, jnp.float64)
        yield f"{training_apart(model, golden, shape):.0e}"


def head(first, *columns):
    """The head of a table, in Markdown."""
    print(f"| {first:<19} | " + " | ".join(columns) + " |")
    print("| --- |" + " ---: |" * len(columns))


def classifiers(names):
    """Prints a table for those of the same sizes."""
    sizes = recipe.sizes(names[0])
    sizes = [f"{height} x {width}" for height, width in sizes]
    columns = ["parameters", "multiply-adds", *sizes, "training", "in float64"]
    head("model", *columns)
    for name in names:
        model = golden_models.load(name)
        found = costs.measure(model, model.counted_at)
        apart = logits_apart(model, golden_of(name), recipe.sizes(name))
        cells = [
            f"{found.parameters:,}",
            f"{found.multiply_adds / 1e9:.2f} G",
            *(f"{each:.1e}" for each in apart),
            *in_training(golden_models.load, name),
        ]
        print(f"| {name:<19} | " + " | ".join(cells) + " |", flush=True)


def segmentation_networks(names):
    """Prints the table of segmentation networks."""
    head("network", "parameters", "logits", "training", "in float64")
    for name in names:
        model = golden_models.load_segmentation(name)
        sizes = recipe.SEGMENTATION_SIZES[recipe.SEGMENTATION[name][0]]
        cells = [
            f"{costs.measure(model, 64).parameters:,}",
            f"{max(logits_apart(model, golden_of(name), sizes)):.1e}",
            *in_training(golden_models.load_segmentation, name),
        ]
        print(f"| {name:<19} | " + " | ".join(cells) + " |", flush=True)


def main():
    """Prints the tables, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    everything = [*recipe.MODELS, *recipe.SEGMENTATION]
    parser.add_argument("names", nargs="*", default=everything)
    names = parser.parse_args().names
    for small in (False, True):
        found = [name for name in names if name in recipe.MODELS]
        found = [name for name in found if recipe.is_small(name) == small]
        if found:
            classifiers(found)
            print()
    if found := [name for name in names if name in recipe.SEGMENTATION]:
        segmentation_networks(found)


if __name__ == "__main__":
    main()
