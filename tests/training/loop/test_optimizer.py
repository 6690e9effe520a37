"""Schedules against closed forms; AdamW over groups against plain NumPy."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_models
from configs import common
from training.loop import optimizer, param_groups, schedules


def trace(stage, steps, per_epoch=1, rate=1.0):
    schedule = schedules.make_schedule(stage, steps, per_epoch, rate)
    return np.array([schedule(step) for step in range(steps)], np.float32)


def half_cosine(start, end, share):
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


@pytest.mark.parametrize("steps", [1, 2, 3, 40, 101])
def test_cosine_equals_its_closed_form_and_ends_at_the_floor(steps):
    stage = common.stage(learning_rate=3e-4, end_rate=1e-6)
    expected = [
        half_cosine(3e-4, 1e-6, step / max(steps - 1, 1))
        for step in range(steps)
    ]
    np.testing.assert_allclose(trace(stage, steps), expected, rtol=1e-5)
    if steps > 1:
        assert trace(stage, steps)[-1] == np.float32(1e-6)


def test_one_cycle_equals_torch_one_cycle():
    # OneCycleLR(max_lr=1e-3, total_steps=50, pct_start=.1, div_factor=10,
    # final_div_factor=500): phases end at steps .1 * 50 - 1 and 49.
    stage = common.one_cycle(1e-3)
    expected = []
    for step in range(50):
        if step <= 4:
            expected.append(half_cosine(1e-4, 1e-3, step / 4))
        else:
            expected.append(half_cosine(1e-3, 2e-7, (step - 4) / 45))
    got = trace(stage, 50)
    np.testing.assert_allclose(got, expected, rtol=2e-5)
    assert got.argmax() == 4
    assert got[-1] == np.float32(2e-7)


def test_warm_restarts_jump_back_and_the_last_cycle_reaches_the_floor():
    # 20, 40 and then 40 instead of 80: the stage is 100 epochs long.
    stage = common.stage(
        schedule="warm_restarts", restart_epochs=2.0, end_rate=1e-6
    )
    got = trace(stage, 100, per_epoch=10)
    for start, length in ((0, 20), (20, 40), (60, 40)):
        expected = [
            half_cosine(3e-4, 1e-6, i / (length - 1)) for i in range(length)
        ]
        np.testing.assert_allclose(
            got[start : start + length], expected, rtol=2e-5
        )


def test_constant_stays():
    got = trace(common.stage(schedule="constant"), 5)
    np.testing.assert_allclose(got, 3e-4)


def test_warmup_cosine_rises_in_a_line_and_falls_to_the_floor():
    stage = common.stage(schedule="warmup_cosine", warmup=0.2, end_rate=1e-6)
    expected = [3e-4 * (step + 1) / 9 for step in range(8)]
    expected += [half_cosine(3e-4, 1e-6, step / 31) for step in range(32)]
    got = trace(stage, 40)
    np.testing.assert_allclose(got, expected, rtol=2e-5)
    assert got[-1] == np.float32(1e-6)


def test_warmup_cosine_without_warmup_is_cosine():
    fields = {"end_rate": 1e-6}
    warm = common.stage(schedule="warmup_cosine", warmup=0.0, **fields)
    np.testing.assert_array_equal(
        trace(warm, 20), trace(common.stage(**fields), 20)
    )


def test_step_drops_every_so_many_epochs():
    stage = common.stage(schedule="step", step_epochs=2.0, step_factor=0.5)
    got = trace(stage, 50, per_epoch=10)
    expected = [3e-4 * 0.5 ** (step // 20) for step in range(50)]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_time_decay_is_of_the_first_rate_in_every_epoch():
    """The reference applied the factor to the current rate, again and again."""
    stage = common.stage(schedule="time_decay", learning_rate=1e-3)
    got = trace(stage, 1000, per_epoch=10)
    np.testing.assert_allclose(got[0], 1e-3, rtol=1e-6)
    np.testing.assert_allclose(got[200], 1e-3 / 2, rtol=1e-6)
    np.testing.assert_allclose(got[-1], 1e-3 / (1 + 0.05 * 99.9), rtol=1e-6)


def test_a_rate_factor_scales_one_cycle_and_the_peak_of_the_others():
    stage = common.one_cycle(3e-4)
    np.testing.assert_allclose(
        trace(stage, 50, rate=10.0), 10 * trace(stage, 50), rtol=2e-5
    )
    stage = common.stage(end_rate=1e-6)
    head = trace(stage, 50, rate=10.0)
    assert head[0] == np.float32(3e-3) and head[-1] == np.float32(1e-6)


HEAD_FASTER = (common.group(common.HEAD, rate=10.0),)


def advance(stage, params, all_grads, finite=True):
    """Parameters after one step for each of some gradients."""
    groups = param_groups.assign(params, stage)
    tables = optimizer.rate_tables(stage, groups, 10, 1)
    state = optimizer.init(params, groups, stage)
    for grads in all_grads:
        norm = optimizer.global_norm(grads)
        params, state = optimizer.advance(
            stage,
            groups,
            tables,
            grads,
            norm,
            params,
            state,
            jnp.bool_(finite),
        )
    return params


def test_tables_hold_the_schedule_and_share_a_length():
    stage = common.one_cycle(3e-4, param_groups=HEAD_FASTER)
    params = {"stem": {"bias": jnp.zeros(3)}, "head": {"bias": jnp.zeros(3)}}
    groups = param_groups.assign(params, stage)
    assert param_groups.rates(groups) == (1.0, 10.0)
    tables = optimizer.rate_tables(stage, groups, 50, 5)
    for row, rate in enumerate((1.0, 10.0)):
        expected = trace(stage, 50, 5, rate)
        np.testing.assert_allclose(
            tables[row][:50], expected, rtol=1e-6, atol=1e-12
        )
        assert (tables[row][50:] == tables[row][49]).all()
    longer = optimizer.rate_tables(stage, groups, 999, 9)
    assert longer.shape == tables.shape


def test_a_head_with_a_rate_of_its_own_is_logged_beside_the_rest():
    stage = common.one_cycle(3e-4, param_groups=HEAD_FASTER)
    rates = schedules.logged_rates(stage, 50, 5)
    assert list(rates) == ["learning_rate", "learning_rate_head"]
    frozen = (common.group(common.ENCODER, frozen=True),)
    rates = schedules.logged_rates(common.stage(param_groups=frozen), 50, 5)
    assert list(rates) == ["learning_rate"]


def test_head_and_encoder_move_at_their_own_rates():
    stage = common.stage(
        schedule="constant", learning_rate=0.01, param_groups=HEAD_FASTER
    )
    params = {"stem": {"bias": jnp.zeros(3)}, "head": {"bias": jnp.zeros(3)}}
    ones = {"stem": {"bias": jnp.ones(3)}, "head": {"bias": jnp.ones(3)}}
    moved = advance(stage, params, [ones])
    # Adam's first step has the length of the rate.
    np.testing.assert_allclose(moved["stem"]["bias"], -0.01, rtol=1e-5)
    np.testing.assert_allclose(moved["head"]["bias"], -0.1, rtol=1e-5)


@pytest.mark.parametrize(
    "name", [name for name in jax_models.list_models() if "demo" in name]
)
def test_weight_decay_touches_kernels_and_nothing_else(name):
    model = nnx.eval_shape(lambda: jax_models.create_model(name, 10))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    groups = param_groups.assign(params, common.stage())
    flat = dict(nnx.traversals.flatten_mapping(groups))
    shapes = nnx.traversals.flatten_mapping(params)
    assert any(group.weight_decay for group in flat.values())
    for path, group in flat.items():
        assert bool(group.weight_decay) == (path[-1] == "kernel"), path
        if not group.weight_decay:
            # What is left out is never a matrix that mixes features.
            name = "/".join(str(part) for part in path)
            assert shapes[path].ndim == 1 or "bias" in name, name


def test_adamw_takes_the_step_of_the_paper():
    stage = common.stage(
        schedule="constant",
        learning_rate=0.01,
        weight_decay=0.1,
        betas=(0.9, 0.95),
    )
    kernel = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)
    bias = np.array([1.0, -1.0], np.float32)
    params = {"kernel": jnp.array(kernel), "bias": jnp.array(bias)}
    m = {k: 0.0 for k in params}
    v = {k: 0.0 for k in params}
    expected = {"kernel": kernel.copy(), "bias": bias.copy()}
    all_grads = []
    for t in range(1, 4):
        grads = {
            "kernel": np.full((2, 2), 0.1 * t, np.float32),
            "bias": np.array([t, -t], np.float32),
        }
        all_grads.append({k: jnp.array(g) for k, g in grads.items()})
        for k, g in grads.items():
            m[k] = 0.9 * m[k] + 0.1 * g
            v[k] = 0.95 * v[k] + 0.05 * g**2
            direction = (m[k] / (1 - 0.9**t)) / (
                np.sqrt(v[k] / (1 - 0.95**t)) + 1e-8
            )
            decay = 0.1 * expected[k] if k == "kernel" else 0.0
            expected[k] = expected[k] - 0.01 * (direction + decay)
    params = advance(stage, params, all_grads)
    for k in params:
        np.testing.assert_allclose(params[k], expected[k], rtol=1e-5)


def test_clipping_bounds_the_global_norm_before_adam():
    # Adam forgets the scale of one gradient, but not the ratio of two.
    grads = [
        {"bias": jnp.array([3.0, 4.0])},
        {"bias": jnp.array([0.3, 0.4])},
    ]
    params = {"bias": jnp.zeros(2)}

    def second_update(clip_norm):
        stage = common.stage(
            schedule="constant", learning_rate=1.0, clip_norm=clip_norm
        )
        before = advance(stage, params, grads[:1])["bias"]
        return advance(stage, params, grads)["bias"] - before

    # Clipped to .5, both gradients are [.3, .4]: the direction is all ones.
    np.testing.assert_allclose(second_update(0.5), [-1, -1], rtol=1e-4)
    assert not np.allclose(second_update(0.0), [-1, -1], rtol=1e-2)
