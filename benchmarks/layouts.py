"""The loss of one training on every layout of devices, side by side.

    python benchmarks/layouts.py [--steps=50] [--float64]

trains the demo recipes on the digits: on 1 device, on 8 that share the
batches, on 2 x 4 that share the parameters as well, with every batch in 4
parts, and in 2 processes of 4 devices each. All devices are parts of this
machine's CPU. The columns are the largest relative differences of the loss to
that of 1 device, over the first step, over 10 steps and over all of them.

The layouts add the same numbers in another order. Float32 rounds each sum to
6e-8, and training amplifies that from step to step; the bounds are what one
may expect of that. `--float64` shows that it is nothing else: the differences
then shrink by as much as the rounding does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["JAX_PLATFORMS"] = "cpu"
CACHE = "~/.cache/sextet/tests"

# One core compiles each program in a minute rather than in three.
QUICKLY = (
    "--xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)
BATCH = 32

# Of the loss, relative: in the first step, within 10 steps, within 50.
BOUNDS = {False: (2e-6, 2e-4, 5e-3), True: (1e-13, 1e-11, 1e-9)}


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a training is laid out: data x fsdp devices, a batch in parts."""

    name: str
    data: int = 1
    fsdp: int = 1
    parts: int = 1


ONE = Layout("1 device")
LAYOUTS = {
    # Has BatchNorm: the statistics are those of the whole batch.
    "tinyvit": (
        ONE,
        Layout("8 devices, data", data=8),
        Layout("2 x 4 devices, data x fsdp", data=2, fsdp=4),
        Layout("2 processes x 4 devices", data=8),
    ),
    # Has none, and so its batches can be divided.
    "miniconvnext": (
        ONE,
        Layout("1 device, batch in 4 parts", parts=4),
    ),
}


def losses(recipe: str, layout: Layout, steps: int, float64: bool) -> list:
    """Returns the loss of every step, in this process or as one of several."""
    import jax
    import jax.numpy as jnp

    from configs import loading
    from training import runtime
    from training.data import Data
    from training.loop import optimizer, param_groups, stages, state
    from training.loop.step import make_train_step
    from training.multihost import sharding
    from training.tasks.classify import Classification
    from training.tasks.statistics import Statistics

    jax.config.update("jax_enable_x64", float64)
    cache = runtime.start(CACHE)
    config = loading.load(f"{ROOT}/configs/{recipe}.py:demo")
    for stage in config.stages:
        stage.batch_size, stage.accumulate = BATCH, layout.parts
    mesh = sharding.make_mesh(
        layout.fsdp, jax.devices()[: layout.data * layout.fsdp]
    )
    with tempfile.TemporaryDirectory() as folder:
        data = Data(config, Path(folder), mesh, 0, Classification)
        measured = data.prepare(cache)
    task = Classification(config, data.source.classes)
    task.statistics = Statistics.of(data, *measured)
    stage = stages.plan_stages(config, len(data.train_rows))[0]
    weights = state.init_weights(task.abstract_model, mesh)
    if float64:
        weights = jax.tree.map(lambda x: x.astype(jnp.float64), weights)
    now = state.start_stage(0, *weights, stage.config, mesh)
    groups = param_groups.assign(weights[0], stage.config)
    step = make_train_step(
        task.abstract_model,
        task.loss(stage, mesh),
        stage.config,
        optimizer.rate_tables(
            stage.config, groups, stage.steps, stage.steps_per_epoch
        ),
        mesh,
        seed=config.seed,
        log_every_steps=1,
    )
    found = []
    sampler = task.sampler(data, data.stage_seed(stage))
    with data.train(stage, 0, sampler) as batches:
        for _ in range(steps):
            now, measured = step(now, sharding.put_batch(next(batches), mesh))
            found.append(float(measured["loss"]))
    return found


def work(options: argparse.Namespace) -> None:
    """Is one of several processes: prints the losses as JSON."""
    from training import runtime
    from training.cli import Peers

    runtime.connect(Peers(options.coordinator, 2, options.process))
    layout = Layout("", data=8)
    found = losses(options.recipe, layout, options.steps, options.float64)
    print(json.dumps(found))


def in_two_processes(recipe: str, options: argparse.Namespace) -> list:
    """Returns the losses of two processes with four devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count=4 {QUICKLY}"
    command = [
        *(sys.executable, __file__, f"--recipe={recipe}"),
        *(f"--steps={options.steps}", f"--coordinator={coordinator}"),
        *(["--float64"] if options.float64 else []),
    ]
    processes = [
        subprocess.Popen(
            [*command, f"--process={index}"],
            env={**os.environ, "XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("one of the two processes failed")
    return json.loads(outputs[0].splitlines()[-1])


def main() -> int:
    """Prints the table; returns 1 if a difference is out of bounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--float64", action="store_true")
    parser.add_argument("--recipe", choices=LAYOUTS, help="only this one")
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process is not None:
        work(options)
        return 0
    devices = "--xla_force_host_platform_device_count=8"
    os.environ["XLA_FLAGS"] = f"{devices} {QUICKLY}"
    bounds, bad = BOUNDS[options.float64], False
    print(f"{'':42} last loss    step 1  10 steps  {options.steps} steps")
    for recipe in [options.recipe] if options.recipe else LAYOUTS:
        one = None
        for layout in LAYOUTS[recipe]:
            if "processes" in layout.name:
                found = in_two_processes(recipe, options)
            else:
                arguments = (recipe, layout, options.steps, options.float64)
                found = losses(*arguments)
            one = one or found
            apart = [abs(a - b) / b for a, b in zip(found, one, strict=True)]
            worst = apart[0], max(apart[:10]), max(apart)
            bad |= any(
                w > bound for w, bound in zip(worst, bounds, strict=True)
            )
            cells = "  ".join(f"{w:8.1e}" for w in worst)
            name = f"{recipe}: {layout.name}"
            print(f"{name:42} {found[-1]:.6f}  {cells}", flush=True)
    cells = "  ".join(f"{bound:8.1e}" for bound in bounds)
    print(f"{'bound':42} {'':8}  {cells}")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
