"""Schedules against their closed forms; AdamW against plain NumPy."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_models
from configs import common
from training.loop import optimizer


def trace(stage, steps, per_epoch=1, group="encoder"):
    schedule = optimizer.make_schedule(stage, steps, per_epoch, group)
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


def test_the_head_has_its_own_peak_and_one_cycle_scales_as_a_whole():
    stage = common.one_cycle(3e-4, head_learning_rate=3e-3)
    np.testing.assert_allclose(
        trace(stage, 50, group="head"), 10 * trace(stage, 50), rtol=2e-5
    )
    stage = common.stage(head_learning_rate=3e-3, end_rate=1e-6)
    head = trace(stage, 50, group="head")
    assert head[0] == np.float32(3e-3) and head[-1] == np.float32(1e-6)
    stage = common.stage(end_rate=1e-6)
    np.testing.assert_array_equal(
        trace(stage, 50, group="head"), trace(stage, 50)
    )


def test_tables_hold_the_schedule_and_share_a_length():
    stage = common.one_cycle(3e-4, head_learning_rate=3e-3)
    tables = optimizer.rate_tables(stage, 50, 5)
    for group in ("encoder", "head"):
        expected = trace(stage, 50, 5, group)
        np.testing.assert_allclose(
            tables[group][:50], expected, rtol=1e-6, atol=1e-12
        )
        assert (tables[group][50:] == tables[group][49]).all()
    longer = optimizer.rate_tables(common.stage(schedule="constant"), 999, 9)
    assert longer["head"].shape == tables["head"].shape


def test_head_and_encoder_move_at_their_own_rates():
    stage = common.stage(
        schedule="constant", learning_rate=0.01, head_learning_rate=0.1
    )
    tx = optimizer.make_optimizer(stage, optimizer.rate_tables(stage, 10, 1))
    params = {"stem": {"bias": jnp.zeros(3)}, "head": {"bias": jnp.zeros(3)}}
    grads = {"stem": {"bias": jnp.ones(3)}, "head": {"bias": jnp.ones(3)}}
    updates, _ = tx.update(grads, tx.init(params), params)
    # Adam's first step has the length of the rate.
    np.testing.assert_allclose(updates["stem"]["bias"], -0.01, rtol=1e-5)
    np.testing.assert_allclose(updates["head"]["bias"], -0.1, rtol=1e-5)


@pytest.mark.parametrize(
    "name", [name for name in jax_models.list_models() if "demo" in name]
)
def test_weight_decay_touches_kernels_and_nothing_else(name):
    model = nnx.eval_shape(lambda: jax_models.create_model(name, 10))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    mask = dict(nnx.traversals.flatten_mapping(optimizer.decay_mask(params)))
    shapes = nnx.traversals.flatten_mapping(params)
    assert any(mask.values())
    for path, decays in mask.items():
        assert decays == (path[-1] == "kernel"), path
        if not decays:
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
    tx = optimizer.make_optimizer(stage, optimizer.rate_tables(stage, 10, 1))
    kernel = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)
    bias = np.array([1.0, -1.0], np.float32)
    params = {"kernel": jnp.array(kernel), "bias": jnp.array(bias)}
    state = tx.init(params)
    m = {k: 0.0 for k in params}
    v = {k: 0.0 for k in params}
    expected = {"kernel": kernel.copy(), "bias": bias.copy()}
    for t in range(1, 4):
        grads = {
            "kernel": np.full((2, 2), 0.1 * t, np.float32),
            "bias": np.array([t, -t], np.float32),
        }
        updates, state = tx.update(
            {k: jnp.array(g) for k, g in grads.items()}, state, params
        )
        params = {k: params[k] + updates[k] for k in params}
        for k, g in grads.items():
            m[k] = 0.9 * m[k] + 0.1 * g
            v[k] = 0.95 * v[k] + 0.05 * g**2
            direction = (m[k] / (1 - 0.9**t)) / (
                np.sqrt(v[k] / (1 - 0.95**t)) + 1e-8
            )
            decay = 0.1 * expected[k] if k == "kernel" else 0.0
            expected[k] = expected[k] - 0.01 * (direction + decay)
    for k in params:
        np.testing.assert_allclose(params[k], expected[k], rtol=1e-5)


def test_clipping_bounds_the_global_norm_before_adam():
    # Adam forgets the scale of one gradient, but not the ratio of two.
    grads = [jnp.array([3.0, 4.0]), jnp.array([0.3, 0.4])]
    params = {"bias": jnp.zeros(2)}

    def second_update(clip_norm):
        stage = common.stage(
            schedule="constant", learning_rate=1.0, clip_norm=clip_norm
        )
        tx = optimizer.make_optimizer(
            stage, optimizer.rate_tables(stage, 10, 1)
        )
        state = tx.init(params)
        for grad in grads:
            update, state = tx.update({"bias": grad}, state, params)
        return update["bias"]

    # Clipped to .5, both gradients are [.3, .4]: the direction is all ones.
    np.testing.assert_allclose(second_update(0.5), [-1, -1], rtol=1e-4)
    assert not np.allclose(second_update(0.0), [-1, -1], rtol=1e-2)
