"""The steps of recipes, compiled for TPUs that are not here.

Shared by tpu_check.py and tpu_scaling.py. A compilation takes minutes, so what
was found is kept, one JSON file for each step, under the hash of the step's
program: a script that is stopped goes on where it was, and a change of the
code compiles what it changes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.atomic_files import write_text
from jax_models import cpu_kernels
from training import cli, memory_plan, runtime, topology_plan
from training import data as data_lib
from training.chips import Bound, parse_slice
from training.hlo import Collective
from training.loop import stages
from training.tasks import base, registry
from training.topology_plan import DoesNotFit, StepCost

KEPT = Path("~/.cache/sextet/tpu_steps").expanduser()
# The digits, blown up to the recipe's image size: shapes are all that counts.
NO_DATA = "/nonexistent"


@dataclasses.dataclass(frozen=True)
class Step:
    """A recipe's heaviest step on a slice.

    Attributes:
      recipe: the config's file name, without ".py".
      topology: the slice, as text.
      batch_size: images of a step, on all chips.
      cost: what it needs; None if it does not fit into the chips.
      seconds: that compiling took.
    """

    recipe: str
    topology: str
    batch_size: int
    cost: StepCost | None
    seconds: float

    @property
    def images_per_second(self) -> float:
        """At most."""
        return self.batch_size / self.cost.bound.seconds


def compile_recipe(
    recipe: str,
    topology: str,
    batch_size: int = 0,
    overrides: Sequence[str] = (),
    kept: Path = KEPT,
) -> Step:
    """Compiles the heaviest step of a recipe, or finds it compiled.

    Args:
      recipe: such as "tinyvit", with a variant after a colon.
      topology: such as "v5e:2x4".
      batch_size: of the step; 0 takes the recipe's.
      overrides: further flags, `--config.a.b=value`.
      kept: folder of what was found before.

    Raises:
      UserError: libtpu is not installed.
    """
    name, _, variant = recipe.partition(":")
    path = f"configs/{name}.py" + (f":{variant}" if variant else "")
    config = cli.parse([f"--config={path}", *overrides]).config
    config.init_from = ""  # Weights change no shape.
    chips = parse_slice(topology)
    for stage in config.stages:
        stage.batch_size = batch_size or stage.batch_size
    # Nothing is evaluated, but every batch must divide.
    config.eval.batch_size = chips.size
    runtime.stay_on_cpu()
    mesh = topology_plan.make_mesh(chips, config.mesh.fsdp)
    with cpu_kernels.for_mesh(mesh):
        task_class = registry.check(config)
        data = data_lib.Data(
            config, Path(NO_DATA), mesh, 0, task_class.features
        )
        task = task_class(config, data.source.classes)
        task.statistics = base.Statistics.unknown(data.class_prior)
        schedule = stages.plan_stages(config, len(data.train_rows))
        stage = memory_plan.heaviest(schedule)
        lowered = memory_plan.lower_stage(task, data, stage, mesh)
    program = f"{chips}\n{lowered.as_text()}"
    digest = hashlib.sha256(program.encode()).hexdigest()[:16]
    found = kept / f"{name}-{digest}.json"
    if found.exists():
        return read(found)
    start, cost = time.monotonic(), None
    with contextlib.suppress(DoesNotFit):
        cost = topology_plan.cost(topology_plan.compile_lowered(lowered), chips)
    step = Step(
        recipe,
        topology,
        stage.config.batch_size,
        cost,
        time.monotonic() - start,
    )
    kept.mkdir(parents=True, exist_ok=True)
    write_text(found, json.dumps(dataclasses.asdict(step), indent=1))
    return step


def read(path: Path) -> Step:
    """Reads a step that `compile_recipe` has kept."""
    fields = json.loads(path.read_text())
    cost = fields.pop("cost")
    if cost is not None:
        cost["bound"] = Bound(**cost["bound"])
        cost["collectives"] = {
            kind: Collective(**each)
            for kind, each in cost["collectives"].items()
        }
        cost = StepCost(**cost)
    return Step(cost=cost, **fields)
