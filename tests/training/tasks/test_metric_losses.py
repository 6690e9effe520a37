"""Metric losses beside loops in float64 NumPy, and at their limits."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training.tasks import metric_objective as objective
from training.tasks.embedding_batch import Memory, empty_memory, remember

B, D, C = 14, 6, 5
MARGIN = 0.7
# Two singletons, of which one matches nothing, and a row that is no image.
LABELS = np.int32([0, 1, 0, 2, 1, 0, 3, 2, -1, 1, -1, 3, 0, 4])
WEIGHT = np.float32([1] * 12 + [0, 1])


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


def evaluate(name, arrays, memory=None, **options):
    assert not list(objective.problems(name, options))
    loss = objective.make_metric_loss(name, options)
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
    value, found = evaluate("triplet", arrays, margin=MARGIN, **options)
    losses = np.maximum(MARGIN + gaps, 0)
    assert float(value) == pytest.approx(losses.mean(), rel=1e-5)
    active = (losses > 0).mean()
    assert float(found["triplet_active"]) == pytest.approx(active)

    value, _ = evaluate(
        "triplet", arrays, margin=MARGIN, active_only=True, **options
    )
    assert float(value) == pytest.approx(losses[losses > 0].mean(), rel=1e-5)

    value, found = evaluate("soft_triplet", arrays, margin=MARGIN, **options)
    assert float(value) == pytest.approx(np.logaddexp(0, gaps).mean(), 1e-5)
    assert float(found["soft_triplet_active"]) == pytest.approx(
        (gaps > 0).mean()
    )

    value, _ = evaluate("cosine_triplet", arrays, margin=MARGIN, **options)
    gaps = [loops.cosine[a, n] - loops.cosine[a, p] for a, p, n in triplets]
    expected = np.maximum(MARGIN + np.array(gaps), 0).mean()
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
        pushed += [MARGIN - loops.distance[a, n] for n in loops.negatives(a)]
        pairs += len(loops.positives(a)) + len(loops.negatives(a))
    pushed = [loss for loss in pushed if loss > 0]
    value, found = evaluate("contrastive", arrays, margin=MARGIN)
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
    from training.tasks.metric_losses import with_margins

    theta = jnp.linspace(0, math.pi, 400)
    for margins in ((1, 0.5, 0), (1, 0, 0.35), (1, 0.3, 0.2)):
        values = np.asarray(with_margins(jnp.cos(theta), *margins))
        assert (np.diff(values) < 1e-6).all(), margins


# ---- Limits -----------------------------------------------------------------

MINERS = ("all", "hard", "semi_hard", "semi_hard_facenet", "n_hard")
EVERY = [
    *(
        (name, miner)
        for name in ("triplet", "soft_triplet")
        for miner in MINERS
    ),
    ("cosine_triplet", "all"),
    ("triplet", "hard_cluster"),
    *(
        (name, "all")
        for name in objective.TERMS
        if not name.endswith("triplet")
    ),
]


def value_and_grads(name, arrays, **options):
    loss = objective.make_metric_loss(name, options)
    x, labels, weight, weights = map(jnp.asarray, arrays)
    return jax.value_and_grad(
        lambda x, w: loss(x, labels, weight, w, None)[0], argnums=(0, 1)
    )(x, weights)


@pytest.mark.parametrize(("name", "miner"), EVERY)
def test_gradients_are_differences(name, miner):
    arrays = batch(seed=3, unit=False)
    options = {"miner": miner, "scale": 4.0, "temperature": 0.5, "margin": 2.0}
    _, (grad, weights_grad) = value_and_grads(name, arrays, **options)
    rng = np.random.default_rng(1)
    loss = jax.jit(objective.make_metric_loss(name, options))
    for number, slope in ((0, grad), (3, weights_grad)):
        way = rng.standard_normal(slope.shape).astype(np.float32)
        ends = []
        for step in (1e-2, -1e-2):
            moved = list(arrays)
            moved[number] = arrays[number] + np.float32(step) * way
            ends.append(float(loss(*map(jnp.asarray, moved), None)[0]))
        expected = (ends[0] - ends[1]) / 2e-2
        found = float((np.asarray(slope) * way).sum())
        # float32 differences over a step that may cross a kink.
        assert found == pytest.approx(expected, rel=0.08, abs=2e-3), number


@pytest.mark.parametrize(("name", "miner"), EVERY)
def test_rows_of_weight_zero_take_no_part(name, miner):
    arrays = batch()
    options = {"miner": miner, "margin": 0.9}
    value, (grad, _) = value_and_grads(name, arrays, **options)
    kept = [array[WEIGHT > 0] for array in arrays[:3]] + [arrays[3]]
    alone, (alone_grad, _) = value_and_grads(name, kept, **options)
    assert float(value) > 0
    assert float(value) == pytest.approx(float(alone), rel=1e-5)
    assert not np.asarray(grad)[WEIGHT == 0].any()
    np.testing.assert_allclose(
        np.asarray(grad)[WEIGHT > 0], alone_grad, rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize(("name", "miner"), EVERY)
@pytest.mark.parametrize(
    "labels",
    [np.zeros(B), np.full(B, -1), np.arange(B) % C],
    ids=["one class", "none matches", "classes"],
)
@pytest.mark.parametrize("kind", ["point", "zero", "pairs", "huge"])
def test_nothing_makes_a_loss_or_a_gradient_infinite(name, miner, labels, kind):
    embeddings, _, weight, weights = batch()
    if kind == "point":
        embeddings = np.broadcast_to(embeddings[:1], embeddings.shape)
    elif kind == "zero":
        embeddings = np.zeros_like(embeddings)
    elif kind == "pairs":  # Each picture twice; classes on their weights.
        embeddings = np.repeat(embeddings[:7], 2, axis=0)
        weights = embeddings[::3][:C]
    else:
        embeddings = embeddings * 1e6
    arrays = embeddings, np.int32(labels), weight, weights
    value, grads = value_and_grads(name, arrays, miner=miner)
    assert np.isfinite(value)
    assert all(np.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("miner", ["all", "hard", "hard_cluster"])
@pytest.mark.parametrize("name", ["triplet", "soft_triplet", "cosine_triplet"])
def test_a_collapsed_model_is_at_the_collapse_value(name, miner):
    embeddings, labels, weight, weights = batch()
    embeddings = np.broadcast_to(embeddings[:1], embeddings.shape)
    arrays = embeddings, labels, weight, weights
    options = {"miner": miner, "margin": 0.3}
    value, found = evaluate(name, arrays, **options)
    expected = objective.collapse_value(name, options)
    assert float(value) == pytest.approx(expected, rel=1e-6)
    assert float(found["negative_distance"]) == 0
    assert objective.collapse_value("cosface", options) is None
    assert objective.collapse_value("triplet+cosface", options) is None


def test_without_an_active_triplet_loss_and_gradient_are_zero():
    rng = np.random.default_rng(0)
    labels = np.int32([0, 0, 1, 1])
    embeddings = np.repeat(np.float32([[1, 0], [-1, 0]]), 2, axis=0)
    embeddings += 0.01 * rng.standard_normal(embeddings.shape, np.float32)
    arrays = embeddings, labels, np.ones(4, np.float32), embeddings[:2]
    for miner in MINERS:
        for active_only in (True, False):
            value, (grad, _) = value_and_grads(
                "triplet", arrays, miner=miner, active_only=active_only
            )
            assert float(value) == 0
            assert not np.asarray(grad).any()


def test_arcface_on_the_very_weights_of_its_class_is_finite():
    weights = np.eye(3, 4, dtype=np.float32)
    labels = np.int32([0, 1, 2])
    for sign in (1, -1):
        arrays = sign * weights, labels, np.ones(3, np.float32), weights
        for margins in ((1.0, 0.5, 0.0), (1.2, 0.3, 0.1)):
            value, grads = value_and_grads(
                "combined_margin", arrays, combined_margins=margins
            )
            assert np.isfinite(value)
            assert all(np.isfinite(grad).all() for grad in grads)


def test_bfloat16_embeddings_are_computed_in_float32():
    embeddings, *rest = batch()
    rounded = jnp.asarray(embeddings, jnp.bfloat16)
    for name in objective.TERMS:
        found, _ = evaluate(name, (rounded, *rest))
        same, _ = evaluate(name, (rounded.astype(jnp.float32), *rest))
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
        remember(memory, np.zeros((6, 2)), np.zeros(6), np.zeros(6))


@pytest.mark.parametrize(
    "name", ["triplet", "contrastive", "supcon", "multi_similarity"]
)
def test_a_memory_gives_further_candidates_and_no_anchors(name):
    """Losses with the memory's rows appended, whose own terms are taken out."""
    arrays = batch()
    past = batch(seed=5)
    memory = remember(empty_memory(B + 3, D), *map(jnp.asarray, past[:3]))
    value, _ = evaluate(name, arrays, memory, margin=0.9)
    # An anchor alone with all candidates, one after the other.
    rows = np.flatnonzero(WEIGHT)
    joined = [
        np.concatenate([one, other])
        for one, other in zip(arrays[:3], past[:3], strict=True)
    ]
    plain, _ = evaluate(name, arrays, empty_memory(4, D), margin=0.9)
    without, _ = evaluate(name, arrays, margin=0.9)
    assert float(plain) == pytest.approx(float(without), rel=1e-6)
    assert float(value) != pytest.approx(float(without), rel=1e-3)
    if name == "supcon":
        loops = Loops((*joined, None))
        expected = []
        for a in rows:
            exps = np.exp(loops.cosine[a] / 0.1)
            others = [j for j in loops.rows if j != a]
            if positives := loops.positives(a):
                shares = exps[positives] / exps[others].sum()
                expected.append(-np.log(shares).mean())
        assert float(value) == pytest.approx(np.mean(expected), rel=1e-5)
    if name == "triplet":
        loops = Loops((*joined, None))
        gaps = [
            loops.distance[a, p] - loops.distance[a, n]
            for a, p, n in loops.triplets("all", 0)
            if a < B
        ]
        expected = np.maximum(0.9 + np.array(gaps), 0).mean()
        assert float(value) == pytest.approx(expected, rel=1e-5)


def test_a_memory_has_no_gradient():
    arrays = batch()
    memory = remember(empty_memory(B, D), *map(jnp.asarray, arrays[:3]))
    for name in ("triplet", "supcon"):
        loss = objective.make_metric_loss(name, {})

        def value(kept, loss=loss):
            full = Memory(kept, *memory[1:])
            return loss(*map(jnp.asarray, arrays), full)[0]

        assert not np.asarray(jax.grad(value)(memory.embeddings)).any()


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


@pytest.mark.parametrize(("name", "miner"), EVERY)
def test_eight_devices_give_what_one_does(name, miner):
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices")
    arrays = batch()
    arrays = [np.concatenate([array, array[:2]]) for array in arrays[:3]]
    weights = batch()[3]
    options = {"miner": miner, "margin": 0.9}
    loss = objective.make_metric_loss(name, options)
    step = jax.jit(
        jax.value_and_grad(
            lambda x, labels, weight, w: loss(x, labels, weight, w, None)[0]
        )
    )
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), "data")
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    value, grad = step(*map(jnp.asarray, arrays), weights)
    placed = [jax.device_put(array, rows) for array in arrays]
    sharded, sharded_grad = step(*placed, weights)
    assert float(sharded) == pytest.approx(float(value), rel=1e-5)
    np.testing.assert_allclose(sharded_grad, grad, rtol=1e-3, atol=1e-6)
