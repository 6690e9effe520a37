"""What makes a step fit: parts of a batch, bfloat16 moments, remat, a plan."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import Run

from configs import common
from core.errors import UserError
from jax_models import layers
from training import config as config_lib
from training import feed, memory_plan, runtime
from training.loop import grad_accumulation
from training.loop.stages import Stage
from training.multihost import sharding


def moments(state, name):
    paths, _ = jax.tree_util.tree_flatten_with_path(state.opt_state)
    return [x for path, x in paths if f"/{name}/" in sharding.path_name(path)]


def test_bfloat16_halves_the_first_moment_and_only_that():
    state = Run(momentum_dtype="bfloat16").start()
    assert {x.dtype for x in moments(state, "mu")} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in moments(state, "nu")} == {jnp.dtype("float32")}
    plain = Run().start()
    assert {x.dtype for x in moments(plain, "mu")} == {jnp.dtype("float32")}
    small, large = (
        memory_plan._bytes(
            sharding.with_shardings(jax.eval_shape(lambda s=s: s), Run().mesh)
        )
        for s in (state.opt_state, plain.opt_state)
    )
    count = sum(x.size for x in moments(plain, "mu"))
    assert large - small == 2 * count


def test_a_backend_that_counts_no_work_is_no_error():
    class Step:
        def cost_analysis(self):
            return None

    assert math.isnan(memory_plan._flops(Step()))


def test_a_row_is_dropped_alike_in_a_part_and_in_the_whole():
    def masks(parts):
        drop = layers.DropPath(0.5, rngs=nnx.Rngs(0))
        rows = jnp.ones((12, 3))
        if parts == 1:
            return np.asarray(drop(rows))
        found = np.zeros((12, 3))
        for index in range(parts):
            drop = layers.DropPath(0.5, rngs=nnx.Rngs(0))
            with layers.part_of_batch(jnp.int32(index), parts):
                found[index::parts] = drop(rows[index::parts])
        return found

    whole = masks(1)
    assert 0 < (whole == 0).mean() < 1
    np.testing.assert_array_equal(masks(3), whole)
    np.testing.assert_array_equal(masks(4), whole)


def test_batch_norm_and_parts_of_batches_are_refused_with_a_way_out():
    config = common.base()
    config.stages = (common.stage(accumulate=2),)
    grad_accumulation.check(config, {})
    with pytest.raises(UserError, match=r"stages\[0\].*--config.remat=True"):
        grad_accumulation.check(config, {"mean": jnp.zeros(3)})


def test_batches_that_cannot_be_shared_are_named_all_at_once():
    class Mesh:
        size = 8

    config = common.base()
    config.eval.batch_size = 12
    config.stages = (
        common.stage(batch_size=64),
        common.stage(batch_size=20),
        common.stage(batch_size=24, accumulate=2),
    )
    with pytest.raises(UserError) as refused:
        feed._check_batches(config, Mesh)
    for part in (
        "eval.batch_size is 12 (take a multiple of 8)",
        "stages[1].batch_size is 20 (take a multiple of 8)",
        "stages[2].batch_size is 24 in 2 parts (take a multiple of 16)",
    ):
        assert part in str(refused.value)
    assert "stages[0]" not in str(refused.value)


def test_what_changes_no_number_may_differ_when_a_run_goes_on():
    config = common.base()
    config.stages = (common.stage(),)
    before = config_lib.config_hash(config)
    config.mesh.fsdp, config.remat = 4, True
    config.stages[0].accumulate = 2
    assert config_lib.config_hash(config) == before
    config.stages[0].momentum_dtype = "bfloat16"
    assert config_lib.config_hash(config) != before


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--coordinator=a:1"], "belong together"),
        (
            ["--coordinator=a", "--num-processes=2", "--process-id=0"],
            "free port",
        ),
        (
            ["--coordinator=a:1", "--num-processes=2", "--process-id=2"],
            "from 0 to 1",
        ),
        (["--config.mesh.fsdp=0"], "mesh.fsdp is 0"),
        (["--workdir=gs://bucket"], "name a folder in a bucket"),
        (["--config.stages[0].accumulate=5"], "a divisor of batch_size"),
        (["--config.stages[0].momentum_dtype=int8"], "choose one of float32"),
    ],
)
def test_flags_that_cannot_work(flags, reason):
    demo = "--config=configs/miniconvnext.py:demo"
    with pytest.raises(UserError, match=reason):
        config_lib.parse([demo, *flags])


def test_the_heaviest_stage_is_the_one_with_most_rows_at_a_time():
    def stage(index, **fields):
        return Stage(index, common.stage(**fields), 0, 1, 1, 1)

    plan = [
        stage(0, batch_size=64, frozen=("encoder",)),
        stage(1, batch_size=64),
        stage(2, batch_size=128, accumulate=4),
    ]
    assert memory_plan.heaviest(plan).index == 1


def test_bytes_of_collectives_are_read_from_a_compiled_program():
    class Compiled:
        def as_text(self):
            return (
                "%a = f32[4,8]{1,0} all-reduce(%x), replica_groups={}\n"
                "%b = (f32[3], bf16[10]) all-reduce(%x, %y), to_apply=%sum\n"
                "%c = f32[16]{0} all-gather(%a), dimensions={0}\n"
                "%d = f32[16]{0} add(%c, %all-gather)\n"
            )

    found = memory_plan.traffic(Compiled())
    assert found == {"all-reduce": 128 + 12 + 20, "all-gather": 64}


@pytest.mark.parametrize(
    ("backend", "found"),
    [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")],
)
def test_accelerators_compute_in_bfloat16_unless_told(
    backend, found, monkeypatch
):
    monkeypatch.setattr("jax.default_backend", lambda: backend)
    assert runtime.compute_dtype("auto") == jnp.dtype(found)
    assert runtime.compute_dtype("float32") == jnp.float32
    assert runtime.compute_dtype("bfloat16") == jnp.bfloat16
