"""Metric losses beside loops in float64 NumPy; their names and options."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest
from metric_batch import MARGIN, Loops, batch, evaluate

from training.tasks import metric_objective as objective
from training.tasks.metric_losses import with_margins

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


# ---- Sums, names, devices ---------------------------------------------------


def test_a_sum_of_losses_is_their_sum_and_tells_its_parts():
    arrays = batch()
    value, found = evaluate("cosface + triplet", arrays)
    parts = [evaluate(name, arrays)[0] for name in ("cosface", "triplet")]
    assert float(value) == pytest.approx(float(sum(parts)), rel=1e-6)
    assert float(found["cosface_loss"]) == float(parts[0])
    assert {"triplet_loss", "triplet_active"} <= set(found)
    assert objective.needs_class_weights("triplet+cosface")
    assert not objective.needs_class_weights("triplet")


def test_diagnostics_by_hand():
    arrays = batch(unit=False)
    loops = Loops(arrays)
    near = [
        loops.distance[a, p] for a in loops.rows for p in loops.positives(a)
    ]
    far = [loops.distance[a, n] for a in loops.rows for n in loops.negatives(a)]
    _, found = evaluate("cosface", arrays)
    for name, values in (
        ("positive_distance", near),
        ("negative_distance", far),
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
