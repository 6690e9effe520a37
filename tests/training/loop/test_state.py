"""The train step: one key, one answer; nothing left behind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import LOSS, Run, loss_fn, prepare

from configs import common
from core.errors import UserError
from training.loop import optimizer, param_groups
from training.loop import state as state_lib


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same_bits(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_same_seed_same_numbers_and_another_seed_others():
    first, _ = Run().train(Run().start(), 5)
    second, _ = Run().train(Run().start(), 5)
    assert_same_bits(first, second)
    other_run = Run(seed=2)
    other, _ = other_run.train(other_run.start(), 5)
    assert any(
        (x != y).any()
        for x, y in zip(leaves(first.params), leaves(other.params), strict=True)
    )


def test_going_on_from_a_copied_state_gives_the_same_bits():
    run = Run(ema_decay=0.9)
    whole, _ = run.train(run.start(), 7)
    half, _ = run.train(run.start(), 3)
    copied = jax.tree.map(lambda x: jnp.array(np.asarray(x)), half)
    resumed, _ = Run(ema_decay=0.9).train(copied, 4)
    assert_same_bits(whole, resumed)


def test_step_moves_every_parameter_and_the_batch_statistics():
    run = Run()
    before = jax.tree.map(np.asarray, run.start())
    after, _ = run.train(run.start(), 1)
    for name in ("params", "batch_stats"):
        old = dict(nnx.traversals.flatten_mapping(getattr(before, name)))
        new = dict(nnx.traversals.flatten_mapping(getattr(after, name)))
        assert old, name
        for path, value in old.items():
            # A bias in front of BatchNorm has no gradient: its mean absorbs it.
            if path != ("conv", "bias"):
                assert (value != new[path]).any(), (name, path)


def test_gradient_and_update_equal_those_written_out():
    run = Run()
    state = run.start()
    batch = run.batch(0)
    key = jax.random.fold_in(jax.random.key(1), 0)
    model_key, loss_key = jax.random.split(key)

    prepared = prepare(batch, LOSS.constants, loss_key)

    @jax.jit
    @jax.value_and_grad
    def loss_of(params):
        model = run.abstract_model.merge(params, state.batch_stats, model_key)
        model.train()
        return loss_fn(model, prepared, LOSS.constants)

    loss, grads = loss_of(state.params)
    expected, _ = optimizer.advance(
        run.stage,
        run.groups,
        run.tables,
        grads,
        optimizer.global_norm(grads),
        state.params,
        state.opt_state,
        jnp.bool_(True),
    )
    after, measured = run.train_step(state, batch)
    # A bias in front of BatchNorm has a gradient of rounding noise alone.
    del after.params["conv"]["bias"], expected["conv"]["bias"]
    for x, y in zip(leaves(after.params), leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-6)
    assert float(measured["loss"]) == pytest.approx(float(loss), rel=1e-5)


def test_every_random_layer_has_a_key_of_its_own_each_step():
    abstract_model = Run().abstract_model
    run = Run()
    state = run.start()

    def masks(key):
        model = abstract_model.merge(state.params, state.batch_stats, key)
        model.train()
        ones = jnp.ones((1, 64))
        return np.asarray(model.first(ones)), np.asarray(model.second(ones))

    first, second = masks(jax.random.key(0))
    later, _ = masks(jax.random.key(1))
    again, _ = masks(jax.random.key(0))
    assert (first != second).any()
    assert (first != later).any()
    np.testing.assert_array_equal(first, again)


def test_ema_averages_weights_and_statistics_and_is_what_counts():
    run = Run(ema_decay=0.15)
    state = run.start()

    def of(state):
        return {"params": state.params, "batch_stats": state.batch_stats}

    expected = jax.tree.map(np.array, of(state))
    for step in range(3):
        state, _ = run.train(state, 1)
        decay = min(0.15, (1 + step) / (10 + step))
        expected = jax.tree.map(
            lambda mean, new, d=decay: d * mean + (1 - d) * np.asarray(new),
            expected,
            of(state),
        )
    for x, y in zip(leaves(state.ema), leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
    assert state.weights == (state.ema["params"], state.ema["batch_stats"])
    plain = Run().start()
    assert plain.ema == {}
    assert plain.weights == (plain.params, plain.batch_stats)


def tree_of(state, name):
    return dict(nnx.traversals.flatten_mapping(getattr(state, name)))


def frozen(*patterns):
    return tuple(common.group(match, frozen=True) for match in patterns)


@pytest.mark.parametrize(
    "patterns", [(common.ENCODER,), ("^conv/", "^norm/"), ("^(conv|norm)",)]
)
def test_frozen_groups_keep_their_very_bits_and_statistics(patterns):
    run = Run(param_groups=frozen(*patterns), ema_decay=0.9, clip_norm=1.0)
    before = jax.tree.map(np.asarray, run.start())
    after, _ = run.train(run.start(), 3)
    for path, value in tree_of(before, "params").items():
        same = np.array_equal(value, tree_of(after, "params")[path])
        assert same == (path[0] != "head"), path
    assert_same_bits(before.batch_stats, after.batch_stats)
    assert_same_bits(before.batch_stats, after.ema["batch_stats"])
    del after.ema["params"]["head"], before.params["head"]
    assert_same_bits(before.params, after.ema["params"])


def test_a_frozen_norm_answers_as_in_evaluation():
    run = Run(param_groups=frozen(common.ENCODER))
    state = run.start()
    model = run.abstract_model.merge(state.params, state.batch_stats)
    param_groups.set_train_mode(model, run.stage)
    images = run.batch(0)["image"]
    found = model(images)
    model.eval()
    np.testing.assert_array_equal(found, model(images))
    param_groups.set_train_mode(model, common.stage())
    assert (np.asarray(model(images)) != np.asarray(found)).any()


def test_frozen_parameters_have_no_moments():
    shapes = [leaf.shape for leaf in leaves(Run().start().opt_state)]
    without = Run(param_groups=frozen("^conv/")).start().opt_state
    left = [leaf.shape for leaf in leaves(without)]
    assert shapes.count((3, 3, 3, 8)) == 2
    assert left.count((3, 3, 3, 8)) == 0


def test_a_pattern_of_no_parameter_and_a_model_all_frozen_are_refused():
    params = Run().start().params

    def check(*patterns):
        stage = common.stage(param_groups=frozen(*patterns))
        param_groups.check(params, [stage])

    check(common.ENCODER)
    check("^conv/", "^norm/")
    with pytest.raises(UserError, match=r"'cnov'.*conv, head, norm"):
        check("cnov")
    with pytest.raises(UserError, match="nothing is left to learn"):
        check(common.ENCODER, common.HEAD)


def test_metrics_are_means_since_the_last_logged_step():
    run = Run(log_every_steps=3)
    single = Run(log_every_steps=1)
    state, alone = run.start(), single.start()
    losses, windows = [], []
    for step in range(6):
        state, measured = run.train_step(state, run.batch(step))
        windows.append(float(measured["loss"]))
        alone, measured = single.train_step(alone, single.batch(step))
        losses.append(float(measured["loss"]))
    assert windows[2] == pytest.approx(np.mean(losses[:3]), rel=1e-5)
    assert windows[5] == pytest.approx(np.mean(losses[3:]), rel=1e-5)


def test_a_step_that_is_not_finite_changes_no_weight_and_is_counted():
    run = Run(ema_decay=0.9, log_every_steps=4)
    state, _ = run.train(run.start(), 1)
    before = jax.tree.map(np.array, state)
    # A value that float32 cannot hold once it is squared and summed.
    poison = {**run.batch(1), "image": jnp.full((8, 8, 8, 3), 1e38)}
    state, measured = run.train_step(state, poison)
    for name in ("params", "batch_stats", "ema"):
        assert_same_bits(getattr(before, name), getattr(state, name))
    assert int(measured["skipped"]) == int(measured["skipped_in_a_row"]) == 1
    assert np.isfinite(measured["loss"])
    assert int(state.step) == 2
    state, measured = run.train_step(state, run.batch(2))
    assert int(measured["skipped"]) == 1
    assert int(measured["skipped_in_a_row"]) == 0
    assert (
        np.asarray(state.params["head"]["kernel"])
        != before.params["head"]["kernel"]
    ).any()


def test_the_old_state_is_donated():
    run = Run()
    state = run.start()
    run.train_step(state, run.batch(0))
    assert state.params["head"]["kernel"].is_deleted()


def test_shapes_to_restore_into_are_those_of_a_fresh_stage():
    run = Run(ema_decay=0.5, clip_norm=1.0)
    like = state_lib.abstract_state(run.abstract_model, run.stage, run.mesh)
    fresh = run.start(step=17)
    assert int(fresh.step) == 17
    assert jax.tree.structure(like) == jax.tree.structure(fresh)
    for shape, array in zip(
        jax.tree.leaves(like), jax.tree.leaves(fresh), strict=True
    ):
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
        assert shape.sharding.is_equivalent_to(array.sharding, array.ndim)
