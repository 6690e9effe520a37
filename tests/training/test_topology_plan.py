"""What a plan says of chips that are not here."""

import re

import jax
import jax.numpy as jnp
import pytest
from commands import needs_libtpu
from jax.sharding import NamedSharding, PartitionSpec

from training import gpu_target, memory_plan, topology_plan
from training.chips import CHIPS, parse_slice, roofline
from training.collectives import Collective
from training.topology_plan import DoesNotFit, StepCost

EIGHT = parse_slice("v5e:2x4")


def step_cost(temporaries=2**30):
    reduced = Collective(count=3, size=10**6, sent=1.75e6, overlapped=1)
    return StepCost(
        arguments=2**20,
        temporaries=temporaries,
        flops=197e9,
        accessed=2 * 819 * 10**6,
        padding=819 * 10**6,
        collectives={"all-reduce": reduced},
        bound=roofline(EIGHT, 197e9, 2 * 819e6, 1.75e6),
        estimate=4e-3,
    )


def test_a_step_is_told_per_chip():
    told = dict(topology_plan.describe(step_cost(), EIGHT, batch_size=256))
    assert "1 MiB, activations and gradients 1.0 GiB" in told["memory"]
    assert told["fits"] == "yes, 6% of a chip"
    assert told["work"].endswith("6.16e+09 an image")
    assert "50% of it padding" in told["traffic"]
    assert told["exchange"].startswith("3 all-reduce of 977 KiB")
    assert "2 ms a step by the roofline, limited by memory" in told["bound"]
    assert told["speed"] == "128,000 images/s at most, 50% of the peak"
    assert told["estimate"].endswith("64,000 images/s")


def test_more_than_a_chip_has_does_not_fit():
    cost = step_cost(temporaries=17 * 2**30)
    told = dict(topology_plan.describe(cost, EIGHT, batch_size=256))
    assert told["fits"].startswith("NO, 106%")


class Lowered:
    """A step that the compiler refuses."""

    def __init__(self, message):
        self._message = message

    def compile(self, options):
        raise jax.errors.JaxRuntimeError(self._message)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            "Ran out of memory in memory space hbm. Used 19.58G of 15.75G hbm. "
            "Exceeded hbm capacity by 3.83G.",
            "19.58G of the 15.75G",
        ),
        (
            "Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (19.55G) exceeds available HBM (15.75G).",
            "19.55G of the 15.75G",
        ),
        ("Too large.", "more than a chip has"),
    ],
)
def test_what_the_compiler_cannot_fit_is_no_crash(message, told):
    step = Lowered(f"RESOURCE_EXHAUSTED: {message}")
    with pytest.raises(DoesNotFit, match=re.escape(told)):
        topology_plan.compile_lowered(step, EIGHT)


def test_any_other_refusal_is_a_bug():
    step = Lowered("INTERNAL: mosaic failed")
    with pytest.raises(jax.errors.JaxRuntimeError, match="mosaic"):
        topology_plan.compile_lowered(step, EIGHT)


def test_every_card_has_a_description_of_its_size():
    for kind, chip in CHIPS.items():
        if parse_slice(chip.example).platform == "cuda":
            text = gpu_target.target_config(kind)
            found = dict(re.findall(r"(\w+): ([\d.]+)$", text, re.MULTILINE))
            size = float(found["device_memory_size"])
            assert size == pytest.approx(chip.memory, rel=0.08)
            speed = float(found["memory_bandwidth"])
            assert speed == pytest.approx(chip.bandwidth, rel=0.01)


@pytest.mark.slow
@needs_libtpu
def test_the_tpu_compiler_counts_the_flops_of_one_chip():
    mesh = topology_plan.make_mesh(EIGHT, 1)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    whole = NamedSharding(mesh, PartitionSpec())
    left = jax.ShapeDtypeStruct((8 * 1024, 512), jnp.bfloat16, sharding=rows)
    right = jax.ShapeDtypeStruct((512, 256), jnp.bfloat16, sharding=whole)
    lowered = jax.jit(lambda x, y: x @ y).lower(left, right)
    compiled = topology_plan.compile_lowered(lowered, EIGHT)
    flops = memory_plan.flops_of(compiled)
    assert flops == 2 * 1024 * 512 * 256
    cost = topology_plan.cost(compiled, EIGHT, flops)
    # Operands and result of one chip, once each, no collective.
    assert cost.accessed == 2 * (1024 * 512 + 512 * 256 + 1024 * 256)
    assert not cost.collectives and cost.padding == 0
