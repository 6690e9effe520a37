"""AdamW in C++ against optax, parameter by parameter."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from jax_models import cpu_kernels
from training.loop import optimizer, param_groups

SHAPES = {
    "stem": {"kernel": (3, 3, 3, 17), "bias": (17,)},
    "stages": {"norm": {"scale": (1,)}, "fc": {"kernel": (130, 270)}},
    "head": {"kernel": (17, 5), "bias": (5,)},
}
STAGES = {
    "plain": {},
    "clipped": {"clip_norm": 0.5},
    "clipped above": {"clip_norm": 1e6},
    "faster head": {
        "param_groups": (common.group(common.HEAD, rate=3.0),),
        "betas": (0.8, 0.95),
    },
    "frozen encoder": {
        "param_groups": (common.group(common.ENCODER, frozen=True),)
    },
    "frozen stem": {
        "param_groups": (common.group("^stem/", frozen=True),),
        "weight_decay": 0.0,
    },
    "decay of its own": {
        "param_groups": (common.group("fc/", weight_decay=0.3),)
    },
}


def tree_of(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.array(rng.standard_normal(shape, np.float32)),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def steps(stage, flags, without=False):
    """Parameters and state after as many steps, finite or not."""
    params = tree_of(0)
    groups = param_groups.assign(params, stage)
    tables = optimizer.rate_tables(stage, groups, 20, 5)
    opt_state = optimizer.init(params, groups, stage)

    @jax.jit
    def step(params, opt_state, grads, finite):
        norm = optimizer.global_norm(grads)
        return norm, *optimizer.advance(
            stage, groups, tables, grads, norm, params, opt_state, finite
        )

    norms = []
    for number, finite in enumerate(flags, 1):
        grads = tree_of(number)
        if without:
            with cpu_kernels.without("adamw"):
                norm, params, opt_state = step(params, opt_state, grads, finite)
        else:
            norm, params, opt_state = step(params, opt_state, grads, finite)
        norms.append(norm)
    return params, opt_state, norms


def test_there_is_compiled_code_where_there_is_a_compiler():
    assert cpu_kernels.supports_adamw(tree_of(0)) == (
        shutil.which("c++") is not None
    )


@pytest.mark.parametrize("name", STAGES)
def test_it_is_the_adamw_of_optax(name):
    stage = common.one_cycle(1e-3, **STAGES[name])
    flags = [True, True, False, True]
    found, expected = (
        steps(stage, flags, without) for without in (False, True)
    )
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(found),
        jax.tree.leaves(expected),
        strict=True,
    ):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(
            one, other, rtol=2e-6, atol=1e-7, err_msg=jax.tree_util.keystr(path)
        )
    moved = jax.tree.map(
        lambda one, other: bool((one != other).any()), found[0], tree_of(0)
    )
    groups = param_groups.assign(tree_of(0), stage)
    for one, group in zip(
        jax.tree.leaves(moved), jax.tree.leaves(groups), strict=True
    ):
        assert one != group.frozen, group


def test_a_step_that_is_not_finite_keeps_every_bit_and_counts():
    stage = common.one_cycle(1e-3)
    before, after = (steps(stage, flags) for flags in ([True], [True, False]))
    for one, other in zip(
        jax.tree.leaves(before[:2]), jax.tree.leaves(after[:2]), strict=True
    ):
        if jnp.issubdtype(one.dtype, jnp.floating):
            np.testing.assert_array_equal(one, other)
        else:
            assert other == one + 1


def test_the_norm_is_that_of_all_numbers():
    grads = tree_of(5)
    numbers = np.concatenate(
        [np.float64(leaf).ravel() for leaf in jax.tree.leaves(grads)]
    )
    found = jax.jit(optimizer.global_norm)(grads)
    np.testing.assert_allclose(found, np.linalg.norm(numbers), rtol=1e-6)
    grads["stem"]["bias"] = grads["stem"]["bias"].at[3].set(jnp.nan)
    assert np.isnan(jax.jit(optimizer.global_norm)(grads))


@pytest.mark.parametrize("wrong", ["params", "grads", "mu", "nu"])
def test_arrays_that_do_not_go_together_are_refused(wrong):
    if not cpu_kernels.supports_adamw(tree_of(0)):
        pytest.skip("nothing is compiled here")
    arrays = {
        name: [jnp.ones(1 << (16 if name == wrong else 17))]
        for name in ("params", "grads", "mu", "nu")
    }
    with pytest.raises(jax.errors.JaxRuntimeError, match="sextet_adamw: arg"):
        jax.block_until_ready(
            cpu_kernels.adamw(
                **arrays,
                rates=jnp.array([0.1]),
                decays=[0.0],
                scale=1.0,
                count=jnp.int32(1),
                finite=jnp.bool_(True),
                betas=(0.9, 0.999),
                epsilon=1e-8,
            )
        )


def test_donated_state_is_changed_in_its_place():
    stage = common.one_cycle(1e-3)
    params = tree_of(0)
    groups = param_groups.assign(params, stage)
    tables = optimizer.rate_tables(stage, groups, 20, 5)
    opt_state = optimizer.init(params, groups, stage)

    def step(params, opt_state, grads):
        norm = optimizer.global_norm(grads)
        return optimizer.advance(
            stage,
            groups,
            tables,
            grads,
            norm,
            params,
            opt_state,
            jnp.isfinite(norm),
        )

    compiled = (
        jax.jit(step, donate_argnums=(0, 1))
        .lower(params, opt_state, tree_of(1))
        .compile()
    )
    if cpu_kernels.supports_adamw(params):
        text = compiled.as_text()
        copied = [line for line in text.splitlines() if " copy(" in line]
        wide = [line for line in copied if "[]" not in line]
        assert not wide, "\n".join(wide)
