"""Metric losses beside open-metric-learning and pytorch-metric-learning.

Their answers are of tools/make_verification_goldens.py, in float64.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training.tasks import metric_objective as objective
from training.tasks.embedding_batch import empty_memory, remember

GOLDENS = dict(np.load(Path(__file__).parent / "goldens/metric_losses.npz"))
MARGIN = 0.4
N_HARD = {"hard_positives": (2, 3), "hard_negatives": (2, 5)}
# Means over the triplets that are not 0.
ACTIVE = {"margin": MARGIN, "active_only": True}

CASES = {
    **{
        f"oml {name} {miner}": (
            name,
            {"margin": MARGIN, "miner": miner, **N_HARD},
        )
        for name in ("triplet", "soft_triplet")
        for miner in ("all", "hard", "n_hard", "hard_cluster")
    },
    "oml arcface": ("arcface", {"class_margin": 0.5, "scale": 16.0}),
    "pml triplet all": ("triplet", ACTIVE),
    "pml triplet hard": ("triplet", {**ACTIVE, "miner": "hard"}),
    "pml triplet semi_hard": ("triplet", {**ACTIVE, "miner": "semi_hard"}),
    "pml contrastive": ("contrastive", {"margin": 3.0}),
    "pml supcon": ("supcon", {"temperature": 0.2}),
    "pml ntxent": ("ntxent", {"temperature": 0.2}),
    "pml multi_similarity": ("multi_similarity", {}),
    "pml arcface": ("arcface", {"class_margin": 0.5, "scale": 16.0}),
    "pml cosface": ("cosface", {"class_margin": 0.35, "scale": 16.0}),
}


def arrays(prefix="embeddings", labels="labels"):
    rows = jnp.asarray(GOLDENS[prefix], jnp.float32)
    return rows, jnp.asarray(GOLDENS[labels], jnp.int32), jnp.ones(len(rows))


def test_every_golden_is_looked_at():
    known = {key.removeprefix("loss ") for key in GOLDENS if "loss " in key}
    assert known == set(CASES)


@functools.cache
def our_answers():
    """Each loss with its gradient, compiled at once."""
    weights = jnp.asarray(GOLDENS["class_weights"], jnp.float32)

    def answer(case, x, rest):
        loss = objective.make_metric_loss(*CASES[case])
        return jax.value_and_grad(lambda x: loss(x, *rest, weights)[0])(x)

    @jax.jit
    def all_of(x, *rest):
        return {case: answer(case, x, rest) for case in CASES}

    return all_of(*arrays())


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_the_libraries(case):
    value, grad = our_answers()[case]
    expected = GOLDENS[f"gradient {case}"]
    assert np.abs(expected).max() > 1e-3
    assert float(value) == pytest.approx(float(GOLDENS[f"loss {case}"]), 1e-5)
    np.testing.assert_allclose(
        grad, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize("name", ["contrastive", "supcon", "triplet"])
def test_losses_beside_a_memory_are_pytorch_metric_learnings(name):
    """The values: there, what the batch is compared to has no gradient."""
    # The batch stands in the memory of theirs, and drives out the oldest.
    rows, labels, weight = arrays("past", "past_labels")
    kept = 40 - len(GOLDENS["labels"])
    memory = remember(
        empty_memory(kept, rows.shape[1]),
        rows[-kept:],
        labels[-kept:],
        weight[-kept:],
    )
    options = {
        "contrastive": {"margin": 3.0},
        "supcon": {"temperature": 0.2},
        "triplet": ACTIVE,
    }[name]
    loss = jax.jit(objective.make_metric_loss(name, options))
    value, _ = loss(*arrays(), None, memory)
    expected = float(GOLDENS[f"memory pml {name}"])
    assert float(value) == pytest.approx(expected, rel=1e-5)
