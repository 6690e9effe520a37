"""How long a training step takes to compile, block by block and scanned.

    python benchmarks/compile_time.py [NAME ...] [--size 64] [--batch 2]

Prints one table. "scanned" is the same network with the blocks of each stage
as one `lax.scan` over stacked weights, written here and used nowhere else: it
would become an option of the models if it compiled three times as fast
without a slower step. Its loss is checked against the plain form's. Seconds
are those of the processor, all threads together, which other work on the
machine does not change; memory is what XLA plans for temporaries.

Stochastic depth is off: its rate is part of a block's program, so that blocks
of one stage would not be one program.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax_models
from jax_models import convnext


def make(name, remat=False):
    """The model, with plain random weights."""
    model = nnx.eval_shape(
        lambda: jax_models.create_model(
            name, 16, drop_path_rate=0.0, dropout=0.0, remat=remat
        )
    )
    graphdef, state = nnx.split(model)
    rng = np.random.default_rng(0)

    def draw(leaf):
        values = 0.05 * rng.standard_normal(leaf.shape, np.float32)
        return jnp.asarray(np.abs(values) if leaf.ndim == 1 else values)

    return nnx.merge(graphdef, jax.tree.map(draw, state))


def plain(model):
    """The weights, and the network as a function of them and of images."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def apply(params, images):
        return nnx.merge(graphdef, params, rest, copy=True)(images)

    return params, apply


def scanned(model):
    """As `plain`, for a ConvNeXt, with the blocks of each stage stacked."""
    graphdefs, stacks = [], []
    for stage in model.stages:
        split = [nnx.split(block) for block in stage.blocks]
        states = [state for _, state in split]
        graphdefs.append(split[0][0])
        stacks.append(jax.tree.map(lambda *each: jnp.stack(each), *states))
        stage.blocks = nnx.List([])
    shell, outside = nnx.split(model)

    def apply(params, images):
        outside, stacks = params
        model = nnx.merge(shell, outside)
        x = model.embed(images)
        for stage, graphdef, stack in zip(
            model.stages, graphdefs, stacks, strict=True
        ):
            if stage.downsample is not None:
                x = stage.downsample(x)
            block = functools.partial(_block, graphdef)
            x, _ = jax.lax.scan(block, x, stack)
        return model.head(x)

    return (outside, stacks), apply


def _block(graphdef, x, state):
    return nnx.merge(graphdef, state)(x), None


def measure(params, apply, images, steps):
    """The loss; CPU seconds to trace, to compile, per step; temporary MiB."""

    def step(params, images):
        def loss(params):
            return jnp.square(apply(params, images)).mean()

        value, grads_of = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads_of)

    start = time.process_time()
    lowered = jax.jit(step).lower(params, images)
    traced = time.process_time()
    compiled = lowered.compile()
    done = time.process_time()
    took = []
    for _ in range(steps):
        begin = time.process_time()
        value, _ = jax.block_until_ready(compiled(params, images))
        took.append(time.process_time() - begin)
    memory = compiled.memory_analysis().temp_size_in_bytes / 2**20
    return float(value), traced - start, done - traced, min(took), memory


def main():
    """Prints the table, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=["convnextv2_base"])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    print(
        f"{options.batch} images of {options.size} px, "
        f"on {jax.devices()[0].device_kind}\n"
    )
    print("| model | form | trace s | compile s | step s | MiB |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    shape = (options.batch, options.size, options.size, 3)
    images = np.random.default_rng(1).standard_normal(shape, np.float32)
    for name in options.names:
        forms = {
            "plain": lambda name=name: plain(make(name)),
            "remat": lambda name=name: plain(make(name, remat=True)),
        }
        if name in convnext.VARIANTS:
            forms["scanned"] = lambda name=name: scanned(make(name))
        losses = []
        for form, build in forms.items():
            loss, trace, compile_, step, memory = measure(
                *build(), images, options.steps
            )
            losses.append(loss)
            np.testing.assert_allclose(loss, losses[0], rtol=1e-3)
            print(
                f"| {name} | {form} | {trace:.1f} | {compile_:.1f} "
                f"| {step:.2f} | {memory:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
