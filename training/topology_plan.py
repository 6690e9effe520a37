"""A plan for chips that are not here: the real compiler, on a described slice.

libtpu, the library that a TPU host runs, compiles on any machine. So the step
that it gives is the one that the chips would run: its memory, its layouts and
its collectives are no estimates. What the step takes is one: bounded from
below by what a chip can do at most (`chips.roofline`).
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from core.errors import UserError
from training import chips as chips_lib
from training import collectives, gpu_target, hlo, memory_plan
from training.chips import Bound, Slice
from training.collectives import Collective
from training.data import Data
from training.loop.stages import Stage
from training.multihost import sharding
from training.tasks.base import Task

# libtpu looks for the host that it runs on; here there is none. And it locks
# the chips, so that not even two plans could be made at once.
_NO_HOST = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What a compiled step needs of each chip.

    Attributes:
      arguments: bytes of the state and the batch.
      temporaries: bytes of activations and gradients.
      flops: of a step; see `count_flops`.
      accessed: bytes between chip and memory, with the padding of tiles.
      padding: of which padding.
      collectives: by kind.
      bound: of the time of a step.
      estimate: seconds of a step by the compiler's own cost model, without
        collectives and as if nothing overlapped; 0 if it has none.
    """

    arguments: int
    temporaries: int
    flops: float
    accessed: int
    padding: int
    collectives: Mapping[str, Collective]
    bound: Bound
    estimate: float

    @property
    def memory(self) -> int:
        """Bytes that a chip must have."""
        return self.arguments + self.temporaries


class DoesNotFit(Exception):
    """The step needs more memory than a chip has; the message says how much."""


def make_mesh(chips: Slice, fsdp: int) -> Mesh:
    """Returns a mesh of described devices: steps compile for it, none runs.

    Args:
      chips: of the slice.
      fsdp: see `sharding.make_mesh`.

    Raises:
      UserError: the compiler is not installed, knows no such slice, or the
        chips do not divide into groups of `fsdp`.
    """
    described = _describe_gpus if chips.platform == "cuda" else _describe_tpus
    try:
        devices = described(chips)
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"the compiler cannot describe --topology={chips} ({reason}); take "
            f"a slice that is offered, such as {chips.chip.example}"
        ) from error
    return sharding.make_mesh(fsdp, devices)


def _describe_tpus(chips: Slice) -> Sequence[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={chips} is compiled by libtpu, which is not "
            f"installed: pip install '{_wanted('libtpu', 'tpu')}' (200 MB; it "
            "needs no TPU)"
        )
    for name, value in _NO_HOST.items():
        os.environ.setdefault(name, value)
    options = {"chip_config_name": "megacore"} if _has_two_cores(chips) else {}
    # Hosts of two by two chips, where the slice divides into such.
    hosts = [2 - size % 2 for size in chips.shape[:2]]
    return topologies.get_topology_desc(
        platform="tpu",
        topology_name=str(chips),
        chips_per_host_bounds=(*hosts, 1),
        **options,
    ).devices


def _describe_gpus(chips: Slice) -> Sequence[jax.Device]:
    plugins = [f"jax_plugins.xla_cuda{version}" for version in (12, 13)]
    if not any(map(_is_installed, plugins)):
        version = jax.__version__
        raise UserError(
            f"--topology={chips} is compiled by JAX's CUDA plugin, which is "
            "not installed: pip install --no-deps "
            f"jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version} (250 MB; "
            "it needs no card)"
        )
    return topologies.get_topology_desc(
        platform="cuda",
        topology=f"1x1x{chips.size}",  # Slices, hosts, cards of a host.
        target_config=gpu_target.target_config(chips.kind),
    ).devices


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # Of its parent.
        return False


def _has_two_cores(chips: Slice) -> bool:
    """Whether a chip is one device of two cores ("megacore")."""
    return chips.kind in ("v4", "v5p")


def _wanted(package: str, extra: str) -> str:
    """Returns what the installed JAX asks for, as pip takes it."""
    for line in importlib.metadata.requires("jax") or ():
        name, _, marker = line.partition(";")
        if name.startswith(package) and f'"{extra}"' in marker:
            return name.strip()
    return package


def compile_lowered(
    lowered: jax.stages.Lowered, chips: Slice
) -> jax.stages.Compiled:
    """Compiles a step that was lowered for a described mesh.

    Args:
      lowered: the step.
      chips: of the mesh.

    Raises:
      DoesNotFit: the compiler found no way to fit it into a chip's memory.
    """
    options = None
    if chips.platform == "cuda":
        # Tuning would run kernels on the card that is not here.
        options = {"xla_gpu_autotune_level": 0}
    try:
        return lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        # "Used 19G of 15G hbm" or "temporaries (19G) exceeds available (15G)".
        sizes = re.findall(r"\b([\d.]+[KMGT])\b", str(error))
        told = "it needs more than a chip has"
        if len(sizes) >= 2:
            told = f"it needs {sizes[0]} of the {sizes[1]} that a chip has"
        raise DoesNotFit(told) from error


def cost(compiled: jax.stages.Compiled, chips: Slice, flops: float) -> StepCost:
    """Returns what a compiled step needs of each chip.

    Args:
      compiled: the step.
      chips: that it was compiled for.
      flops: of a step on each chip.
    """
    module, entry = hlo.parse(compiled.as_text())
    memory = compiled.memory_analysis()
    # The new state takes the place of the old one (donation).
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    traffic = hlo.memory_traffic(module, entry)
    accessed = sum(moved.padded for moved in traffic)
    found = collectives.collectives(module, entry, chips.size)
    cycles = hlo.estimated_cycles(module, entry)
    return StepCost(
        memory.argument_size_in_bytes + max(new, 0),
        memory.temp_size_in_bytes,
        flops,
        accessed,
        accessed - sum(moved.size for moved in traffic),
        found,
        chips_lib.roofline(
            chips, flops, accessed, sum(each.sent for each in found.values())
        ),
        cycles / chips.chip.clock if chips.chip.clock else 0.0,
    )


def count_flops(
    task: Task,
    data: Data,
    stage: Stage,
    compiled: jax.stages.Compiled,
    chips: Slice,
) -> float:
    """Returns the FLOPs of a step on each chip.

    The TPU compiler counts those of one chip (a known product of matrices over
    eight chips gave an eighth), and of a loop those of one round. The CUDA
    compiler counts none; then what the layers ask for is divided.
    """
    flops = memory_plan.flops_of(compiled) * stage.config.accumulate
    if math.isnan(flops):
        flops = memory_plan.count_flops(task, data, stage) / chips.size
    return flops


def report(
    task: Task,
    data: Data,
    stages: Sequence[Stage],
    mesh: Mesh,
    chips: Slice,
) -> Iterator[str]:
    """Yields lines: the chip, the state, then what the compiler says.

    Args:
      task: whose step it is; its loss from shapes alone.
      data: of the run, for a batch's shapes.
      stages: of which the heaviest is looked at.
      mesh: from `make_mesh`.
      chips: the same.
    """
    stage = memory_plan.heaviest(stages)
    yield f"{'chip':>10}  {describe_chip(chips)}"
    sizes = memory_plan.state_sizes(task.abstract_model, stage.config, mesh)
    yield f"{'state':>10}  {sizes}"
    yield (
        f"compiling the step of stage {stage.index + 1} for {chips}; this "
        "takes one to ten minutes"
    )
    try:
        lowered = memory_plan.lower_stage(task, data, stage, mesh)
        compiled = compile_lowered(lowered, chips)
    except DoesNotFit as error:
        yield (
            f"{'fits':>10}  NO, {error}; --config.remat=True needs less, and "
            "so do smaller batches or more chips"
        )
        return
    flops = count_flops(task, data, stage, compiled, chips)
    found = cost(compiled, chips, flops)
    for heading, text in describe(found, chips, stage.config.batch_size):
        yield f"{heading:>10}  {text}"


def describe_chip(chips: Slice) -> str:
    """Returns what a chip can do, for people."""
    chip = chips.chip
    text = (
        f"{chips.kind}, {memory_plan.size(chip.memory)}, at most "
        f"{chip.peak / 1e12:.0f} TFLOP/s and {chip.bandwidth / 1e9:,.0f} GB/s"
    )
    if chips.bandwidth:
        text += f", {chips.bandwidth / 1e9:.0f} GB/s to the others"
    return text


def describe(
    found: StepCost, chips: Slice, batch_size: int
) -> Iterator[tuple[str, str]]:
    """Yields what a step needs of each chip, as (heading, text).

    Args:
      found: from `cost`.
      chips: that it was compiled for.
      batch_size: images of a step, on all chips.
    """
    size = memory_plan.size
    yield (
        "memory",
        f"state and batch {size(found.arguments)}, activations and gradients "
        f"{size(found.temporaries)}: {size(found.memory)} on each chip",
    )
    share = found.memory / chips.chip.memory
    yield "fits", f"{'yes' if share <= 1 else 'NO'}, {share:.0%} of a chip"
    yield (
        "work",
        f"{found.flops:.3g} FLOPs a step on each chip, "
        f"{found.flops * chips.size / batch_size:.3g} an image",
    )
    yield (
        "traffic",
        f"{size(found.accessed)} between chip and memory, "
        f"{found.padding / max(found.accessed, 1):.0%} of it padding",
    )
    for kind, each in sorted(found.collectives.items()):
        yield (
            "exchange",
            f"{each.count} {kind} of {size(each.size)} in all, "
            f"{size(each.sent)} sent by each chip; {each.overlapped} overlap "
            "with work",
        )
    bound = found.bound
    yield (
        "bound",
        f"{bound.seconds * 1e3:.3g} ms a step by the roofline, limited by "
        f"{bound.limit} (compute {bound.compute * 1e3:.3g}, memory "
        f"{bound.memory * 1e3:.3g}, links {bound.links * 1e3:.3g} ms; "
        f"{bound.sum * 1e3:.3g} if nothing overlaps)",
    )
    yield (
        "speed",
        f"{batch_size / bound.seconds:,.0f} images/s at most, "
        f"{found.flops / bound.seconds / chips.chip.peak:.0%} of the peak",
    )
    if found.estimate:
        yield (
            "estimate",
            f"{found.estimate * 1e3:.3g} ms a step by the compiler's own "
            "count of cycles, without collectives, if nothing overlaps: "
            f"{batch_size / found.estimate:,.0f} images/s",
        )
