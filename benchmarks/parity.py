"""How far every model is from timm, as one table.

    python benchmarks/parity.py [NAME ...]

Against the goldens of tests/jax_models (timm 1.0.31, torch 2.13): the largest
difference between logits at each size, in float32 and evaluation mode; and in
training mode the largest difference of the loss, the logits, the gradients
(of the images and of a few parameters) and BatchNorm's updated statistics,
each as a share of the largest value there. The goldens of the training mode
are float64, and so is the last column: it has no rounding to hide behind.
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


def logits_apart(model, golden):
    """The largest difference at each size, in evaluation mode."""
    model.eval()
    for height, width in recipe.SIZES:
        with golden_models.compiled_blocks():
            logits = model(jnp.asarray(recipe.images(1, height, width, 3)))
        yield np.abs(logits - golden[f"logits {height}x{width}"]).max()


def training_apart(model, golden):
    """The largest share, of all that the training mode gives."""
    found = golden_models.training_step(model)
    return max(
        np.abs(value - golden[key]).max() / max(np.abs(golden[key]).max(), 1e-6)
        for key, value in found.items()
    )


def main():
    """Prints the table, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=list(recipe.MODELS))
    sizes = [f"{height} x {width}" for height, width in recipe.SIZES]
    columns = ["parameters", "multiply-adds", *sizes, "training", "in float64"]
    print(f"| {'model':<19} | " + " | ".join(columns) + " |")
    print("| --- |" + " ---: |" * len(columns))
    for name in parser.parse_args().names:
        golden = np.load(
            ROOT / "tests" / "jax_models" / "goldens" / f"{name}.npz"
        )
        model = golden_models.load(name)
        found = costs.measure(model)
        cells = [
            f"{found.parameters:,}",
            f"{found.multiply_adds / 1e9:.2f} G",
            *(f"{apart:.1e}" for apart in logits_apart(model, golden)),
            f"{training_apart(model, golden):.0e}",
        ]
        with jax.enable_x64(True):
            exact = golden_models.load(name, jnp.float64)
            cells.append(f"{training_apart(exact, golden):.0e}")
        print(f"| {name:<19} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
