"""What a run is going to do, told before it does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

import reports
from configs import loading
from jax_models import cpu_kernels
from run_folder import layout
from training import memory_plan, runtime, topology_plan
from training.cli import Arguments
from training.data import Data
from training.loop import dashboards, state, telemetry
from training.loop import stages as stages_lib
from training.loop.stages import Stage
from training.multihost import comm, sharding
from training.tasks.base import Task


def show(
    arguments: Arguments,
    task: Task,
    data: Data,
    stages: Sequence[Stage],
    step: int,
    mesh: Mesh,
) -> None:
    """Prints the plan; with `--plan`, draws its learning rates as well.

    Args:
      arguments: of the command line.
      task: of the run.
      data: of the run.
      stages: of the run.
      step: global steps done so far.
      mesh: of devices.
    """
    config = arguments.config
    dtype = runtime.compute_dtype(config.dtype)
    lines = {
        "recipe": f"{arguments.recipe} -> {arguments.workdir}",
        "model": f"{config.model}, "
        f"{state.count(task.abstract_model.params):,} parameters, {dtype}, "
        f"{config.image_size} px",
        "devices": sharding.describe_mesh(mesh),
        **data.describe(),
        **task.describe(),
        **task.describe_data(data),
        "steps": f"{stages[-1].end:,} in {len(stages)} "
        f"stage{'s' * (len(stages) > 1)}",
    }
    for stage in stages:
        lines[f"stage {stage.index + 1}"] = (
            f"{stage.describe()}; {task.describe_stage(stage)}"
        )
    if 0 < step < stages[-1].end:
        lines["continues"] = f"at step {step:,}"
    for heading, text in lines.items():
        print(f"{heading:>10}  {text}")
    if data.source.name == "digits" and step < stages[-1].end:
        print(
            "No data.root was given, so this trains on 1,797 small digits; "
            "give yours with --config.data.root=FOLDER. The estimated time "
            "follows after the first steps."
        )
    if cpu_kernels.lacks_compiler():
        print(
            "There is no C++ compiler (c++, or what CXX names), so training "
            "on this CPU is slower than it could be."
        )
    if arguments.plan and comm.is_primary():
        path = arguments.workdir / layout.PLAN
        rates = stages_lib.rates_over(stages)
        reports.plan_report(path, config.model, lines, rates)
        print(f"the plan with its learning rates is in {path}")
    sys.stdout.flush()


def listeners(
    arguments: Arguments, task: Task, mesh: Mesh, workers: int, step: int
) -> list[telemetry.Listener]:
    """Returns who hears what the run records; in the primary process alone.

    Args:
      arguments: of the command line.
      task: of the run.
      mesh: of devices.
      workers: loader processes.
      step: global steps done so far.

    Raises:
      UserError: what the command line asks for is not installed.
    """

    def make() -> list[telemetry.Listener]:
        if not comm.is_primary():
            return []
        workdir = arguments.workdir
        start = {**facts(arguments, task, mesh), "workers": workers}
        found: list[telemetry.Listener] = [
            telemetry.TelemetryFile(workdir / layout.TELEMETRY, start),
            telemetry.ReportPage(workdir),
        ]
        if arguments.tensorboard:
            found.append(dashboards.TensorBoard(workdir, step))
        if arguments.wandb:
            plain = loading.plain(arguments.config)
            found.append(
                dashboards.WeightsAndBiases(workdir, arguments.wandb, plain)
            )
        return found

    return comm.run_on_all(make)


def facts(arguments: Arguments, task: Task, mesh: Mesh) -> dict[str, Any]:
    """Returns what a run says of itself in telemetry.jsonl, as JSON.

    Args:
      arguments: of the command line.
      task: of the run.
      mesh: of devices.
    """
    return {
        "command": arguments.command,
        "parameters": state.count(task.abstract_model.params),
        "dtype": str(runtime.compute_dtype(arguments.config.dtype)),
        "devices": sharding.describe_mesh(mesh),
        **telemetry.environment(),
    }


def show_costs(
    arguments: Arguments,
    task: Task,
    data: Data,
    stages: Sequence[Stage],
    mesh: Mesh,
) -> None:
    """Prints what a step needs, line by line: compiling it takes minutes.

    Args:
      arguments: of the command line.
      task: of the run.
      data: of the run.
      stages: of the run.
      mesh: of devices, described ones with `--topology`.
    """
    if arguments.topology:
        lines = topology_plan.report(
            task, data, stages, mesh, arguments.topology
        )
    else:
        lines = memory_plan.report(task, data, stages, mesh)
    for line in lines:
        print(line, flush=True)
