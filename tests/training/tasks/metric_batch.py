"""A batch of embeddings, every loss of it, and their plain forms in loops."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from training.tasks import metric_objective as objective

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


# ---- Every loss -------------------------------------------------------------

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
