"""Metric losses beside loops in float64 NumPy, and at their limits."""

from __future__ import annotations

import functools
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training.tasks import metric_objective as objective
from training.tasks.embedding_batch import Memory, empty_memory, remember
from training.tasks.metric_losses import with_margins

B, D, C = 16, 6, 5
MARGIN = 0.7
# Two singletons, of which one matches nothing, and a row that is no image.
LABELS = np.int32([0, 1, 0, 2, 1, 0, 3, 2, -1, 1, -1, 3, 0, 4, 3, 1])
WEIGHT = np.float32([1] * 12 + [0, 1, 1, 0])


def batch(seed=0, unit=True):
    rng = np.random.default_rng(seed)
    embeddings = rng.standard_normal((B, D), np.float32)
    # Some of one class alike, so that triplets of every difficulty occur.
    centers = rng.standard_normal((C + 1, D), np.float32)
    embeddings += centers[LABELS]
    if unit:
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    weights = rng.standard_normal((C, D), np.float32)
    return embeddings, LABELS, WEIGHT, weights


@functools.cache
def compiled(name, options):
    return jax.jit(objective.make_metric_loss(name, dict(options)))


def evaluate(name, arrays, memory=None, **options):
    assert not list(objective.problems(name, options))
    loss = compiled(name, tuple(options.items()))
    return loss(*map(jnp.asarray, arrays), memory)


# ---- The same in loops ------------------------------------------------------


class Loops:
    """Plain float64 forms over the same batch."""

    def __init__(self, arrays):
        x, labels, weight, self.class_weights = arrays
        self.x = np.float64(x)
        self.rows = np.flatnonzero(weight)
        self.labels = labels
        self.distance = np.linalg.norm(self.x[:, None] - self.x, axis=-1)
        unit = self.x / np.linalg.norm(self.x, axis=1, keepdims=True)
        self.cosine = unit @ unit.T

    def same(self, i, j):
        return self.labels[i] >= 0 and self.labels[i] == self.labels[j]

    def positives(self, a):
        return [p for p in self.rows if p != a and self.same(a, p)]

    def negatives(self, a):
        return [n for n in self.rows if n != a and not self.same(a, n)]

    def triplets(self, miner, margin):
        d, found = self.distance, []
        for a in self.rows:
            far = sorted(self.positives(a), key=lambda p: -d[a, p])
            near = sorted(self.negatives(a), key=lambda n: d[a, n])
            if not far:
                continue
            if miner == "all":
                found += [(a, p, n) for p in far for n in near]
            elif miner == "hard":
                found.append((a, far[0], near[0]))
            elif miner == "n_hard":
                found += [(a, p, n) for p in far[1:3] for n in near[:4]]
            elif miner == "semi_hard":
                found += [
                    (a, p, n)
                    for p, n in itertools.product(far, near)
                    if 0 < d[a, n] - d[a, p] <= margin
                ]
            elif miner == "semi_hard_facenet":
                for p in far:
                    farther = [n for n in near if d[a, n] > d[a, p]]
                    found.append((a, p, farther[0] if farther else near[-1]))
        return found

    def clusters(self):
        """(d_ap, d_an) of hard clusters."""
        names = {}
        for row in self.rows:
            label = self.labels[row]
            names.setdefault(label if label >= 0 else f"alone {row}", [])
            names[label if label >= 0 else f"alone {row}"].append(row)
        means = {name: self.x[rows].mean(0) for name, rows in names.items()}
        found = []
        for name, rows in names.items():
            if len(rows) < 2:
                continue
            near = np.linalg.norm(self.x[rows] - means[name], axis=1).max()
            far = min(
                np.linalg.norm(means[name] - means[other])
                for other in names
                if other != name
            )
            found.append((near, far))
        return found


N_HARD = {"hard_positives": (2, 3), "hard_negatives": (1, 4)}


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize(
    "miner", ["all", "hard", "n_hard", "semi_hard", "semi_hard_facenet"]
)
def test_triplet_losses_are_means_over_the_mined_triplets(miner, unit):
    arrays = batch(unit=unit)
    loops = Loops(arrays)
    options = {"miner": miner, **(N_HARD if miner == "n_hard" else {})}
    triplets = loops.triplets(miner, MARGIN)
    assert len(triplets) > 3
    gaps = np.array(
        [loops.distance[a, p] - loops.distance[a, n] for a, p, n in triplets]
    )
    options |= {"margin": MARGIN}
    three = "triplet+soft_triplet+cosine_triplet"
    _, found = evaluate(three, arrays, **options)
    losses = np.maximum(MARGIN + gaps, 0)
    cosines = [loops.cosine[a, n] - loops.cosine[a, p] for a, p, n in triplets]
    for name, expected in (
        ("triplet_loss", losses.mean()),
        ("triplet_active", (losses > 0).mean()),
        ("soft_triplet_loss", np.logaddexp(0, gaps).mean()),
        ("soft_triplet_active", (gaps > 0).mean()),
        (
            "cosine_triplet_loss",
            np.maximum(MARGIN + np.array(cosines), 0).mean(),
        ),
    ):
        assert float(found[name]) == pytest.approx(expected, rel=1e-5), name
    if miner == "all":
        value, _ = evaluate("triplet", arrays, active_only=True, **options)
        expected = losses[losses > 0].mean()
        assert float(value) == pytest.approx(expected, rel=1e-5)


def test_hard_clusters():
    arrays = batch(unit=False)
    sides = np.array(Loops(arrays).clusters())
    value, _ = evaluate("triplet", arrays, margin=MARGIN, miner="hard_cluster")
    expected = np.maximum(MARGIN + sides[:, 0] - sides[:, 1], 0).mean()
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_cosine_triplet_is_half_the_squared_distances_on_unit_vectors():
    arrays = batch()
    loops = Loops(arrays)
    d = loops.distance
    losses = [
        max(0.0, MARGIN + (d[a, p] ** 2 - d[a, n] ** 2) / 2)
        for a, p, n in loops.triplets("all", MARGIN)
    ]
    value, _ = evaluate("cosine_triplet", arrays, margin=MARGIN)
    assert float(value) == pytest.approx(np.mean(losses), rel=1e-5)


def test_contrastive_by_hand():
    arrays = batch()
    loops = Loops(arrays)
    pulled, pushed, pairs = [], [], 0
    for a in loops.rows:
        pulled += [loops.distance[a, p] for p in loops.positives(a)]
        pushed += [1.5 - loops.distance[a, n] for n in loops.negatives(a)]
        pairs += len(loops.positives(a)) + len(loops.negatives(a))
    pushed = [loss for loss in pushed if loss > 0]
    value, found = evaluate("contrastive", arrays, margin=1.5)
    expected = np.mean(pulled) + np.mean(pushed)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    active = (len(pulled) + len(pushed)) / pairs
    assert float(found["contrastive_active"]) == pytest.approx(active)


def test_supcon_and_ntxent_by_hand():
    arrays = batch()
    loops = Loops(arrays)
    supcon, ntxent = [], []
    for a in loops.rows:
        exps = np.exp(loops.cosine[a] / 0.2)
        others = [j for j in loops.rows if j != a]
        negatives = exps[loops.negatives(a)].sum()
        if not (positives := loops.positives(a)):
            continue
        shares = exps[positives] / exps[others].sum()
        supcon.append(-np.log(shares).mean())
        ntxent += [-np.log(exps[p] / (exps[p] + negatives)) for p in positives]
    value, _ = evaluate("supcon", arrays, temperature=0.2)
    assert float(value) == pytest.approx(np.mean(supcon), rel=1e-5)
    value, _ = evaluate("ntxent", arrays, temperature=0.2)
    assert float(value) == pytest.approx(np.mean(ntxent), rel=1e-5)


def test_multi_similarity_by_hand():
    arrays = batch()
    loops = Loops(arrays)
    losses, kept, pairs = [], 0, 0
    for a in loops.rows:
        positives, negatives = loops.positives(a), loops.negatives(a)
        pairs += len(positives) + len(negatives)
        losses.append(0.0)
        if not positives:
            continue
        c = loops.cosine[a]
        nearest, farthest = c[negatives].max(), c[positives].min()
        p = [j for j in positives if c[j] - 0.1 < nearest]
        n = [j for j in negatives if c[j] + 0.1 > farthest]
        kept += len(p) + len(n)
        losses[-1] += np.log1p(np.exp(-2 * (c[p] - 0.5)).sum()) / 2
        losses[-1] += np.log1p(np.exp(50 * (c[n] - 0.5)).sum()) / 50
    value, found = evaluate("multi_similarity", arrays)
    assert float(value) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(found["multi_similarity_active"]) == pytest.approx(
        kept / pairs
    )
    assert 0 < kept < pairs


@pytest.mark.parametrize(
    ("name", "options", "margins"),
    [
        ("arcface", {"class_margin": 0.5}, (1, 0.5, 0)),
        ("cosface", {"class_margin": 0.35}, (1, 0, 0.35)),
        ("combined_margin", {"combined_margins": (1, 0.3, 0.2)}, (1, 0.3, 0.2)),
        ("combined_margin", {"combined_margins": (0.9, 0.4, 0)}, (0.9, 0.4, 0)),
    ],
)
def test_losses_over_classes_by_hand(name, options, margins):
    arrays = batch(unit=False)
    x, labels, weight, weights = map(np.float64, arrays)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    losses, beyond = [], 0
    m1, m2, m3 = margins
    for row in np.flatnonzero((weight > 0) & (labels >= 0)):
        logits = weights @ unit[row]
        own = int(labels[row])
        theta = np.arccos(logits[own])
        angle = m1 * theta + m2
        if m1 == 1 and angle > math.pi:
            beyond += 1
            logits[own] -= m2 * math.sin(m2)
        else:
            logits[own] = math.cos(min(angle, math.pi))
        logits[own] -= m3
        logits *= 16
        losses.append(np.log(np.exp(logits).sum()) - logits[own])
    value, _ = evaluate(name, arrays, scale=16.0, **options)
    assert float(value) == pytest.approx(np.mean(losses), rel=1e-4)


def test_the_margin_goes_on_falling_beyond_pi():
    theta = jnp.linspace(0, math.pi, 400)
    for margins in ((1, 0.5, 0), (1, 0, 0.35), (1, 0.3, 0.2)):
        values = np.asarray(with_margins(jnp.cos(theta), *margins))
        assert (np.diff(values) < 1e-6).all(), margins


# ---- Limits -----------------------------------------------------------------

MINERS = ("all", "hard", "semi_hard", "semi_hard_facenet", "n_hard")
# Every loss and every miner.
EVERY = {
    **{f"triplet, {miner}": ("triplet", miner) for miner in MINERS},
    "triplet, hard_cluster": ("triplet", "hard_cluster"),
    **{name: (name, "all") for name in objective.TERMS if name != "triplet"},
}


@jax.jit
def every_loss(x, labels, weight, class_weights):
    """Each loss with its gradients of embeddings and of class weights."""
    found = {}
    for key, (name, miner) in EVERY.items():
        loss = objective.make_metric_loss(name, {"miner": miner})

        def value(x, class_weights, loss=loss):
            return loss(x, labels, weight, class_weights, None)[0]

        found[key] = jax.value_and_grad(value, (0, 1))(x, class_weights)
    return found


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


@pytest.mark.parametrize("miner", ["all", "hard", "hard_cluster"])
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


# ---- Sums, names, devices ---------------------------------------------------


def test_a_sum_of_losses_is_their_sum_and_tells_its_parts():
    arrays = batch()
    value, found = evaluate("cosface + triplet", arrays)
    parts = [evaluate(name, arrays)[0] for name in ("cosface", "triplet")]
    assert float(value) == pytest.approx(float(sum(parts)), rel=1e-6)
    assert float(found["cosface_loss"]) == float(parts[0])
    assert {"triplet_loss", "triplet_active", "embedding_norm"} <= set(found)
    assert objective.needs_class_weights("triplet+cosface")
    assert not objective.needs_class_weights("triplet")


def test_diagnostics_by_hand():
    arrays = batch(unit=False)
    loops = Loops(arrays)
    near = [
        loops.distance[a, p] for a in loops.rows for p in loops.positives(a)
    ]
    far = [loops.distance[a, n] for a in loops.rows for n in loops.negatives(a)]
    norms = np.linalg.norm(loops.x[loops.rows], axis=1)
    _, found = evaluate("cosface", arrays)
    for name, values in (
        ("positive_distance", near),
        ("negative_distance", far),
        ("embedding_norm", norms),
    ):
        assert float(found[name]) == pytest.approx(np.mean(values), rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "options", "sentence"),
    [
        ("tripelt", {}, "did you mean triplet?"),
        ("triplet+", {}, "loss has ''"),
        ("triplet", {"miner": "hardest"}, "miner is 'hardest'"),
        ("triplet", {"margin": 0}, "margin is 0: give a number above 0"),
        ("triplet", {"margin": math.nan}, "margin is nan"),
        ("arcface", {"class_margin": 28.6}, "class_margin is 28.6"),
        ("triplet", {"hard_negatives": (3, 2)}, "hard_negatives is (3, 2)"),
        ("triplet", {"marign": 1}, "marign is no option: did you mean margin"),
        ("combined_margin", {"combined_margins": (1, 2)}, "three numbers"),
    ],
)
def test_what_is_wrong_with_a_loss_is_told(loss, options, sentence):
    (found,) = objective.problems(loss, options)
    assert sentence in found


ON_EIGHT_DEVICES = """
import sys
import jax, numpy as np
import test_metric_losses as tests

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
