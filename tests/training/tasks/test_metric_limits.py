"""Metric losses where there is nothing to learn, a memory, many devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from metric_batch import (
    EVERY,
    MARGIN,
    WEIGHT,
    B,
    C,
    D,
    Loops,
    batch,
    evaluate,
    every_loss,
)

from training.tasks import metric_losses
from training.tasks import metric_objective as objective
from training.tasks.embedding_batch import Memory, empty_memory, remember
from training.tasks.metric_losses import with_margins


def test_rows_of_weight_zero_take_no_part():
    embeddings, labels, weight, weights = batch()
    found = every_loss(embeddings, labels, weight, weights)
    embeddings[weight == 0] *= -3
    labels = np.where(weight > 0, labels, 2)
    other = every_loss(embeddings, labels, weight, weights)
    for key, (value, (grad, _)) in found.items():
        assert float(value) > 0, key
        assert float(value) == float(other[key][0]), key
        assert not np.asarray(grad)[weight == 0].any(), key
        assert np.asarray(grad)[weight > 0].any(), key
        np.testing.assert_array_equal(grad, other[key][1][0], err_msg=key)


@pytest.mark.parametrize(
    "what", ["a point", "zeros", "each twice, on its weights", "huge"]
)
def test_nothing_makes_a_loss_or_a_gradient_infinite(what):
    embeddings, _, weight, weights = batch()
    if what == "a point":
        embeddings = np.broadcast_to(embeddings[:1], embeddings.shape)
    elif what == "zeros":
        embeddings, weights = 0 * embeddings, 0 * weights
    elif what == "huge":
        embeddings = embeddings * np.float32(1e6)
    else:
        embeddings = np.repeat(embeddings[: B // 2], 2, axis=0)
        weights = embeddings[::2][:C]
    for labels in (np.zeros(B), np.full(B, -1), np.arange(B) // 2 % C):
        for rows in (weight, 0 * weight):
            found = every_loss(embeddings, np.int32(labels), rows, weights)
            for key, (value, grads) in found.items():
                assert np.isfinite(value), key
                assert all(np.isfinite(grad).all() for grad in grads), key
                if not rows.any():
                    assert float(value) == 0, key
                    assert not any(np.any(grad) for grad in grads), key


@pytest.mark.parametrize(
    "miner",
    ["all", "hard", "hard_cluster", "semi_hard", "semi_hard_facenet"],
)
@pytest.mark.parametrize("name", ["triplet", "soft_triplet", "cosine_triplet"])
def test_a_collapsed_model_is_at_the_collapse_value(name, miner):
    embeddings, labels, weight, weights = batch()
    embeddings = np.broadcast_to(embeddings[:1], embeddings.shape)
    arrays = embeddings, labels, weight, weights
    options = {"miner": miner, "margin": 0.3}
    value, found = evaluate(name, arrays, **options)
    expected = objective.collapse_value(name, options)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert float(found["negative_distance"]) == 0
    assert objective.collapse_value("cosface", options) is None
    assert objective.collapse_value("triplet+cosface", options) is None


def test_without_an_active_triplet_loss_and_gradient_are_zero():
    rng = np.random.default_rng(0)
    labels = np.arange(B, dtype=np.int32) % C
    corners = np.eye(C, D, dtype=np.float32)
    noise = 0.01 * rng.standard_normal((B, D), np.float32)
    arrays = corners[labels] + noise, labels, np.ones(B, np.float32), corners
    for key, (value, (grad, _)) in every_loss(*arrays).items():
        if EVERY[key][0] in ("triplet", "cosine_triplet"):
            assert float(value) == 0, key
            assert not np.asarray(grad).any(), key
    options = {"margin": MARGIN, "active_only": True}
    assert float(evaluate("triplet", arrays, miner="all", **options)[0]) == 0


@pytest.mark.parametrize("margins", [(1, 0.5, 0), (1.2, 0.3, 0.1)])
def test_cosines_of_one_have_finite_gradients(margins):
    cosines = jnp.float32([1, -1, 1 + 1e-6, -1 - 1e-6, 0])
    value, grad = jax.value_and_grad(lambda c: with_margins(c, *margins).sum())(
        cosines
    )
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


def test_bfloat16_embeddings_are_computed_in_float32():
    embeddings, *rest = batch()
    rounded = jnp.asarray(embeddings, jnp.bfloat16)
    found, _ = evaluate("cosface", (rounded, *rest))
    same, _ = evaluate("cosface", (rounded.astype(jnp.float32), *rest))
    assert found.dtype == jnp.float32
    assert float(found) == float(same)


@pytest.mark.parametrize("name", ["triplet", "soft_triplet"])
def test_blocks_of_anchors_give_what_all_at_once_do(name, monkeypatch):
    arrays = [jnp.asarray(array) for array in batch()[:3]]
    loss = objective.make_metric_loss(name, {"margin": MARGIN})

    def found():
        # A function of its own, or the compiled one would be found again.
        return jax.jit(
            jax.value_and_grad(lambda x, *rest: loss(x, *rest), has_aux=True)
        )(*arrays)

    (whole, told), grad = found()
    # Blocks of 3 anchors: the last of 16 is not full.
    monkeypatch.setattr(metric_losses, "_LARGEST_BLOCK", 3 * B * B)
    (value, others), in_blocks = found()
    assert float(value) == pytest.approx(float(whole), rel=1e-6)
    key = f"{name}_active"
    assert float(others[key]) == pytest.approx(float(told[key]), rel=1e-6)
    np.testing.assert_allclose(in_blocks, grad, rtol=1e-4, atol=1e-7)


# ---- Memory -----------------------------------------------------------------


def test_a_memory_is_the_last_rows_in_a_ring():
    memory, kept = empty_memory(5, 2), []
    for number in range(6):
        rows = np.full((2, 2), number, np.float32) + np.float32([[0], [0.5]])
        labels = np.int32([number, -1])
        weight = np.float32([1, number % 2])
        memory = jax.jit(remember)(memory, rows, labels, weight)
        kept += zip(rows[:, 0], labels, weight, strict=True)
        found = sorted(
            zip(
                np.asarray(memory.embeddings)[:, 0].tolist(),
                np.asarray(memory.labels).tolist(),
                np.asarray(memory.filled).tolist(),
                strict=True,
            )
        )
        expected = [(x, y, bool(w)) for x, y, w in kept[-5:]]
        empty = [(0.0, 0, False)] * (5 - len(expected))
        assert found == sorted(map(tuple, [*empty, *expected]))
    with pytest.raises(ValueError, match="a batch of 6 and a memory of 5"):
        six = jnp.zeros(6)
        remember(memory, jnp.zeros((6, 2)), six.astype(int), six)


def test_a_memory_gives_further_candidates_and_no_anchors():
    arrays, past = batch(), batch(seed=5)
    memory = remember(empty_memory(B + 3, D), *map(jnp.asarray, past[:3]))
    options = {"margin": 0.9, "temperature": 0.2}
    _, found = evaluate("triplet+supcon", arrays, memory, **options)
    joined = [
        np.concatenate([one, other])
        for one, other in zip(arrays[:3], past[:3], strict=True)
    ]
    loops = Loops((*joined, None))
    gaps = [
        loops.distance[a, p] - loops.distance[a, n]
        for a, p, n in loops.triplets("all", 0)
        if a < B
    ]
    expected = np.maximum(0.9 + np.array(gaps), 0).mean()
    assert float(found["triplet_loss"]) == pytest.approx(expected, rel=1e-5)
    losses = []
    for a in np.flatnonzero(WEIGHT):
        exps = np.exp(loops.cosine[a] / 0.2)
        others = [j for j in loops.rows if j != a]
        if positives := loops.positives(a):
            shares = exps[positives] / exps[others].sum()
            losses.append(-np.log(shares).mean())
    expected = np.mean(losses)
    assert float(found["supcon_loss"]) == pytest.approx(expected, rel=1e-5)

    _, empty = evaluate(
        "triplet+supcon", arrays, empty_memory(B + 3, D), **options
    )
    _, without = evaluate("triplet+supcon", arrays, **options)
    for name, value in without.items():
        assert float(empty[name]) == pytest.approx(float(value)), name


def test_a_memory_has_no_gradient():
    arrays = batch()
    memory = remember(empty_memory(B, D), *map(jnp.asarray, arrays[:3]))
    loss = objective.make_metric_loss("triplet+supcon", {})

    @jax.jit
    @jax.grad
    def slope(kept):
        full = Memory(kept, *memory[1:])
        return loss(*map(jnp.asarray, arrays), full)[0]

    assert not np.asarray(slope(memory.embeddings)).any()


# ---- Devices ---------------------------------------------------------------

ON_EIGHT_DEVICES = """
import sys
import jax, numpy as np
import metric_batch as tests

mesh = jax.sharding.Mesh(np.array(jax.devices()), "data")
assert mesh.size == 8
rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
*arrays, weights = tests.batch()
placed = [jax.device_put(array, rows) for array in arrays]
leaves = jax.tree.leaves(tests.every_loss(*placed, weights))
np.savez(sys.argv[1], *leaves)
"""


def test_eight_devices_give_what_one_does(tmp_path):
    flags = (
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    )
    here = Path(__file__).parent
    path = tmp_path / "found.npz"
    done = subprocess.run(
        [sys.executable, "-c", ON_EIGHT_DEVICES, str(path)],
        env={
            **os.environ,
            "XLA_FLAGS": " ".join(flags),
            "PYTHONPATH": f"{here}:{here.parents[2]}",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with np.load(path) as file:
        found = [file[name] for name in file.files]
    expected = jax.tree.leaves(every_loss(*batch()))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)
