"""What a step needs of each device, by XLA's own account, before it runs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from jax_models import cpu_kernels
from training.data import Data
from training.loop import optimizer, param_groups
from training.loop.stages import Stage
from training.loop.state import AbstractModel, abstract_state
from training.loop.step import Loss, TrainStep, make_train_step
from training.multihost import sharding
from training.tasks.base import Task


def report(
    task: Task, data: Data, stages: Sequence[Stage], mesh: Mesh
) -> Iterator[str]:
    """Yields lines: the layout of large parameters, then memory and work.

    The second half takes the compilation of a step, which a line announces.

    Args:
      task: whose step it is; its loss from shapes alone.
      data: of the run, for a batch's shapes.
      stages: of which the heaviest is looked at.
      mesh: that it would run on.
    """
    stage = heaviest(stages)
    yield "layout of the parameters on the devices:"
    for line in sharding.describe(
        nnx.to_pure_dict(task.abstract_model.params), mesh
    ):
        yield f"{'':>12}{line}"
    sizes = state_sizes(task.abstract_model, stage.config, mesh)
    yield f"{'state':>10}  {sizes}"
    yield (
        f"compiling the step of stage {stage.index + 1} to see what it needs; "
        "on a CPU this takes minutes for a large model"
    )
    lowered = lower_stage(task, data, stage, mesh)
    compiled = lowered.compile(_quickly(mesh))
    # It counts what a loop does once.
    flops = flops_of(compiled) * stage.config.accumulate
    if mesh.size == 1 and mesh.devices.flat[0].platform == "cpu":
        # It cannot count what C++ computes.
        flops = count_flops(task, data, stage)
    told = measure(compiled, flops, mesh, stage.config.batch_size)
    for heading, text in told.items():
        yield f"{heading:>10}  {text}"


def count_flops(task: Task, data: Data, stage: Stage) -> float:
    """Returns the FLOPs of a step as XLA counts them before compilation."""
    mesh = sharding.make_mesh(devices=jax.devices("cpu")[:1])
    with cpu_kernels.for_mesh(mesh), cpu_kernels.xla_only():
        lowered = lower_stage(task, data, stage, mesh)
    return flops_of(lowered) * stage.config.accumulate


def flops_of(step: jax.stages.Lowered | jax.stages.Compiled) -> float:
    """Returns XLA's count for each device; NaN where it has none."""
    return (step.cost_analysis() or {}).get("flops", math.nan)


def _quickly(mesh: Mesh) -> dict[str, Any] | None:
    """Options to compile with: memory is laid out before code is made."""
    if mesh.local_devices[0].platform != "cpu":
        return None  # The training that follows finds it in the cache.
    return {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    }


def heaviest(plan: Sequence[Stage]) -> Stage:
    """Returns the stage with the most rows in memory at a time.

    Of equals, the one that trains the most: frozen parts keep nothing.
    """

    def rows(stage: Stage) -> tuple[float, int]:
        c = stage.config
        frozen = sum(row.frozen for row in c.param_groups)
        return c.batch_size / c.accumulate, -frozen

    return max(plan, key=rows)


def lower_stage(
    task: Task, data: Data, stage: Stage, mesh: Mesh
) -> jax.stages.Lowered:
    """Returns the step of a stage of a run; see `lower`."""
    return lower(
        task.abstract_model,
        task.loss(stage, mesh, shapes_only=True),
        stage,
        mesh,
        data.example(stage, task.sampler(data, data.stage_seed(stage))),
    )


def lower(
    abstract_model: AbstractModel,
    loss: Loss,
    stage: Stage,
    mesh: Mesh,
    batch: Mapping[str, np.ndarray],
) -> jax.stages.Lowered:
    """Returns the step of `stage`, from shapes alone: nothing is allocated.

    Args:
      abstract_model: of the model.
      loss: of the stage; shapes do for its constants.
      stage: of the plan.
      mesh: that it would run on. Its devices need not be there.
      batch: a part of one, for its shapes.
    """
    c = stage.config
    params = nnx.to_pure_dict(abstract_model.params)
    groups = param_groups.assign(params, c)
    tables = jax.eval_shape(
        lambda: optimizer.rate_tables(
            c, groups, stage.steps, stage.steps_per_epoch
        )
    )
    loss = loss._replace(constants=sharding.abstract(loss.constants, mesh))
    step: TrainStep = make_train_step(
        abstract_model, loss, c, tables, mesh, seed=0, log_every_steps=20
    )
    rows = NamedSharding(mesh, sharding.BATCH_SPEC)
    shapes = {
        name: jax.ShapeDtypeStruct(
            (c.batch_size, *values.shape[1:]), values.dtype, sharding=rows
        )
        for name, values in batch.items()
    }
    return step.lower(abstract_state(abstract_model, c, mesh), shapes)


def state_sizes(
    abstract_model: AbstractModel, stage: ConfigDict, mesh: Mesh
) -> str:
    """Returns what the parts of the state take on each device, for people.

    Args:
      abstract_model: of the model.
      stage: a `configs.common.stage`.
      mesh: that it would run on.
    """
    state = abstract_state(abstract_model, stage, mesh)
    parts = {
        "parameters": (state.params, state.batch_stats),
        "optimizer": state.opt_state,
    }
    if state.ema:
        parts["average"] = state.ema
    told = [f"{name} {size(_bytes(tree))}" for name, tree in parts.items()]
    return f"{', '.join(told)} on each device"


def measure(
    compiled: jax.stages.Compiled, flops: float, mesh: Mesh, batch_size: int
) -> dict[str, str]:
    """Returns what a compiled step needs, as {heading: text}.

    Args:
      compiled: the step.
      flops: of the step, on each device.
      mesh: that it would run on.
      batch_size: images of a step.
    """
    memory = compiled.memory_analysis()
    arguments = memory.argument_size_in_bytes
    # The new state takes the place of the old one (donation).
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    held = arguments + max(results, 0)
    peak = held + memory.temp_size_in_bytes
    limit, sharing = _limit(mesh)
    fits = "yes" if peak * sharing <= limit else "NO"
    there = f"the device has {size(limit)}"
    if mesh.local_devices[0].platform == "cpu":
        there = f"{size(limit)} of this machine for {sharing} device(s)"
    return {
        "memory": f"state and batch {size(held)}, activations and gradients "
        f"{size(memory.temp_size_in_bytes)}: {size(peak)} on each device",
        "fits": f"{fits}, {there}",
        "work": f"{flops:.3g} FLOPs a step on each device, "
        f"{flops * mesh.size / batch_size:.3g} an image; XLA's count",
    }


def _bytes(tree: Any) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _limit(mesh: Mesh) -> tuple[int, int]:
    """Bytes that there are, and how many devices share them."""
    device = mesh.local_devices[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"], 1
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return pages, len(mesh.local_devices)


def size(count: float) -> str:
    """Returns a number of bytes, for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
