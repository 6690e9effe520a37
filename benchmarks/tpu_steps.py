"""The steps of recipes, compiled for TPUs that are not here.

Shared by tpu_check.py and tpu_scaling.py. Compiling a step takes minutes, so
what was found is kept, and a step that is still the same program is not
compiled again: a script that was stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ml_collections import ConfigDict

from core.atomic_files import write_text
from input_pipeline.sources.base import Kind
from jax_models import cpu_kernels
from training import cli, memory_plan, runtime, topology_plan
from training import data as data_lib
from training.chips import Bound, parse_slice
from training.collectives import Collective
from training.loop import stages
from training.tasks import registry
from training.tasks.statistics import Statistics
from training.topology_plan import DoesNotFit, StepCost

# The digits, or scenes of them, enlarged to the recipe's image size: shapes are
# all that counts.
NO_RUN = Path("/nonexistent")


@dataclasses.dataclass(frozen=True)
class Step:
    """A recipe's heaviest step on a slice.

    Attributes:
      recipe: the config's file name, without ".py".
      topology: the slice, as text.
      batch_size: images of a step, on all chips.
      program: hash of the step, the slice and the compiler's version.
      seconds: that compiling took.
      cost: what it needs; None if it does not fit into the chips.
    """

    recipe: str
    topology: str
    batch_size: int
    program: str
    seconds: float
    cost: StepCost | None

    @property
    def rows(self) -> int:
        """Images on a chip."""
        return self.batch_size // parse_slice(self.topology).size


def _config(recipe: str, overrides: Sequence[str] = ()) -> ConfigDict:
    name, _, variant = recipe.partition(":")
    path = f"configs/{name}.py" + (f":{variant}" if variant else "")
    return cli.parse([f"--config={path}", *overrides]).config


def heaviest_batch(recipe: str) -> int:
    """Returns the batch size of a recipe's heaviest stage."""
    schedule = stages.plan_stages(_config(recipe), num_train=1)
    return memory_plan.heaviest(schedule).config.batch_size


def compile_recipe(
    recipe: str,
    topology: str,
    batch_size: int = 0,
    overrides: Sequence[str] = (),
    kept: Path | None = None,
) -> Step:
    """Compiles the heaviest step of a recipe, as `--plan --topology` does.

    Args:
      recipe: such as "tinyvit", with a variant after a colon.
      topology: such as "v5e:2x4".
      batch_size: of the step; 0 takes the recipe's.
      overrides: further flags, `--config.a.b=value`.
      kept: file of `save`, perhaps with this very step.

    Raises:
      UserError: libtpu is not installed.
    """
    config = _config(recipe, overrides)
    config.init_from = ""  # Weights change no shape.
    chips = parse_slice(topology)
    for stage in config.stages:
        stage.batch_size = batch_size or stage.batch_size
    config.eval.batch_size = chips.size  # Not used, but it must divide.
    runtime.stay_on_cpu()
    runtime.start(config.cache_dir)
    mesh = topology_plan.make_mesh(chips, config.mesh.fsdp)
    with cpu_kernels.for_mesh(mesh):
        task_class = registry.check(config)
        if Kind.MASK in task_class.features.values():
            config.data.source = "digit_scenes"
        data = data_lib.Data(config, NO_RUN, mesh, 0, task_class)
        task = task_class(config, data.source.classes)
        task.statistics = Statistics.unknown(data)
        schedule = stages.plan_stages(config, len(data.train_rows))
        stage = memory_plan.heaviest(schedule)
        lowered = memory_plan.lower_stage(task, data, stage, mesh)
    text = f"{chips} {versions()} {lowered.as_text()}"
    digest = hashlib.sha256(text.encode())
    program = digest.hexdigest()[:16]
    if kept is not None and kept.exists():
        step = load(kept)
        if step.program == program:
            return step
    start, cost = time.monotonic(), None
    with contextlib.suppress(DoesNotFit):
        compiled = topology_plan.compile_lowered(lowered, chips)
        flops = topology_plan.count_flops(task, data, stage, compiled, chips)
        cost = topology_plan.cost(compiled, chips, flops)
    seconds = time.monotonic() - start
    size = stage.config.batch_size
    return Step(recipe, topology, size, program, seconds, cost)


def versions() -> str:
    """Returns the compiler's versions, for a table's last line."""
    return ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("jax", "libtpu")
    )


def save(step: Step, path: Path) -> None:
    """Writes a step as JSON, for `load`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(dataclasses.asdict(step), indent=1))


def load(path: Path) -> Step:
    """Reads what `save` has written."""
    fields = json.loads(path.read_text())
    cost = fields.pop("cost")
    if cost is not None:
        collectives = {
            kind: Collective(**each)
            for kind, each in cost.pop("collectives").items()
        }
        bound = Bound(**cost.pop("bound"))
        cost = StepCost(**cost, bound=bound, collectives=collectives)
    return Step(**fields, cost=cost)
