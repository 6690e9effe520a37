"""How long a training step takes to compile, block by block and scanned.

    python benchmarks/compile_time.py [--model convnextv2_base] [--size 64]

Prints one table. "scanned" is the same network with the blocks of each stage
as one `lax.scan` over stacked weights, written here and used nowhere else: it
would become an option of the models if it compiled three times as fast
without a slower step. Memory is what XLA plans for temporaries.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax_models


def stacked_stage(blocks, x):
    """The blocks of a stage as a scan over their stacked weights."""
    split = [nnx.split(block) for block in blocks]
    graphdef = split[0][0]
    weights = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(state for _, state in split)
    )

    def apply(x, state):
        return nnx.merge(graphdef, state)(x), None

    return jax.lax.scan(apply, x, weights)[0]


def scanned(model_class):
    """Replaces the loop over blocks of a ConvNeXt by `stacked_stage`."""

    class Scanned(model_class):
        def encode(self, embedded):
            x, maps = embedded, []
            for stage in self.stages:
                if stage.downsample is not None:
                    x = stage.downsample(x)
                x = stacked_stage(stage.blocks, x)
                maps.append(x)
            return maps

    return Scanned


def measure(name, size, batch, form, steps):
    """Seconds to trace and to compile, per step, and MiB of temporaries.

    Without stochastic depth: its rate is part of a block's program, so
    blocks of one stage would not be the same program.
    """
    model = nnx.eval_shape(
        lambda: jax_models.create_model(
            name, 16, drop_path_rate=0.0, remat=form == "remat"
        )
    )
    if form == "scanned":
        model.__class__ = scanned(type(model))
    graphdef, params = nnx.split(model)

    def step(params, images):
        def loss(params):
            return jnp.square(nnx.merge(graphdef, params)(images)).mean()

        value, slopes = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 1e-3 * g, params, slopes)

    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    start = time.perf_counter()
    lowered = jax.jit(step).lower(params, images)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    weights = jax.tree.map(lambda p: jnp.full(p.shape, 0.01), params)
    pixels = jnp.ones(images.shape)
    took = []
    for _ in range(steps):
        begin = time.perf_counter()
        jax.block_until_ready(compiled(weights, pixels))
        took.append(time.perf_counter() - begin)
    memory = compiled.memory_analysis().temp_size_in_bytes / 2**20
    return traced - start, done - traced, min(took), memory


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="convnextv2_base")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    print(
        f"{options.model}, {options.batch} images of {options.size} px, "
        f"on {jax.devices()[0].device_kind}"
    )
    print(f"{'form':<10}{'trace s':>9}{'compile s':>11}{'step s':>8}{'MiB':>8}")
    forms = ["plain", "remat"]
    if options.model.startswith(("convnext", "miniconvnext")):
        forms.append("scanned")
    for form in forms:
        trace, compile_, step, memory = measure(
            options.model, options.size, options.batch, form, options.steps
        )
        print(
            f"{form:<10}{trace:>9.1f}{compile_:>11.1f}{step:>8.2f}"
            f"{memory:>8.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
