"""How far every model is from timm, as one table.

    python benchmarks/parity.py [NAME ...]

Against the goldens of tests/jax_models (timm 1.0.31, torch 2.13, float32):
the largest difference between logits at each size in evaluation mode, and
between gradients (images and a few parameters) and BatchNorm's updated
statistics in training mode, the latter two as shares of the largest value.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "jax_models")]

import golden_recipe as recipe  # noqa: E402

import jax_models  # noqa: E402
from jax_models import costs  # noqa: E402


def load(name):
    """The model with the recipe's weights, without anything random."""
    model = nnx.eval_shape(
        lambda: jax_models.create_model(
            name, recipe.CLASSES, drop_path_rate=0.0, dropout=0.0
        )
    )
    graphdef, state = nnx.split(model)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), state)
    model = nnx.merge(graphdef, zeros)
    exported = jax_models.export_torch(model)
    shapes = {key: value.shape for key, value in exported.items()}
    return jax_models.import_torch(model, recipe.state_dict(shapes))


def share(found, golden):
    """The largest difference over the largest value."""
    return np.abs(np.asarray(found) - golden).max() / np.abs(golden).max()


def in_training(model, golden):
    """Differences of gradients and of updated statistics."""
    model.train()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    labels = recipe.labels(recipe.CLOSE_LOOK[0])

    @jax.jit
    def step(params, images):
        def loss(params, images):
            model = nnx.merge(graphdef, params, rest, copy=True)
            scores = jax.nn.log_softmax(model(images))
            loss = -scores[np.arange(len(labels)), labels].mean()
            return loss, nnx.state(model, nnx.BatchStat)

        return jax.grad(loss, (0, 1), has_aux=True)(params, images)

    images = jnp.asarray(recipe.images(*recipe.CLOSE_LOOK))
    (to_params, to_images), statistics = step(params, images)
    found = jax_models.export_torch(nnx.merge(graphdef, to_params, statistics))
    sampled = recipe.sample(to_images, 512)
    gradients = [share(sampled, golden["gradient images"])]
    updates = []
    for key, value in golden.items():
        kind, _, name = key.partition(" ")
        if kind == "gradient" and name != "images":
            gradients.append(share(recipe.sample(found[name]), value))
        elif kind == "updated":
            updates.append(share(recipe.sample(found[name], 8), value))
    return max(gradients), max(updates, default=None)


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=list(recipe.MODELS))
    sizes = ["{}x{}".format(*size) for size in recipe.SIZES]
    print(
        f"{'model':<20}{'parameters':>13}{'madds':>9}"
        + "".join(f"{size:>10}" for size in sizes)
        + f"{'gradient':>10}{'update':>9}"
    )
    for name in parser.parse_args().names:
        golden = dict(
            np.load(ROOT / "tests" / "jax_models" / "goldens" / f"{name}.npz")
        )
        model = load(name)
        found = costs.measure(model)
        model.eval()
        graphdef, state = nnx.split(model)
        apply = jax.jit(lambda state, x, g=graphdef: nnx.merge(g, state)(x))
        apart = [
            np.abs(
                apply(state, recipe.images(1, *size, 3))
                - golden[f"logits {label}"]
            ).max()
            for size, label in zip(recipe.SIZES, sizes, strict=True)
        ]
        gradient, update = in_training(model, golden)
        update = "-" if update is None else f"{update:.0e}"
        print(
            f"{name:<20}{found.parameters:>13,}"
            f"{found.multiply_adds / 1e9:>8.2f}G"
            + "".join(f"{value:>10.1e}" for value in apart)
            + f"{gradient:>10.0e}{update:>9}",
            flush=True,
        )


if __name__ == "__main__":
    main()
