"""Asks open-metric-learning and pytorch-metric-learning for their numbers.

As tools/make_model_goldens.py, in the same environment, with both libraries:

    torch-venv/bin/pip install --no-deps open-metric-learning==4.0.0 \\
        pytorch-metric-learning==2.9.0
    torch-venv/bin/python tools/make_verification_goldens.py

Losses and their gradients are of float64 embeddings. What the libraries scale
to unit length by themselves is not, so that the gradients are of all of it.
"""

from __future__ import annotations

# First: it lets torchvision load, which the others import.
from make_model_goldens import ROOT

# isort: split
import numpy as np
import torch
from oml.functional import metrics
from oml.losses.arcface import ArcFaceLoss
from oml.losses.triplet import TripletLossWithMiner
from oml.miners.inbatch_all_tri import AllTripletsMiner
from oml.miners.inbatch_hard_cluster import HardClusterMiner
from oml.miners.inbatch_hard_tri import HardTripletsMiner
from oml.miners.inbatch_nhard_tri import NHardTripletsMiner
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.distances import LpDistance

CLASSES, INSTANCES, WIDTH = 6, 4, 8
MARGIN = 0.4
TOP = (1, 3, 5, 10)
RATES = (0.01, 0.1, 0.25, 0.5)


def make_inputs() -> dict[str, np.ndarray]:
    """A batch of PxK, one before it, and weights of the classes."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), INSTANCES)
    centers = rng.standard_normal((CLASSES, WIDTH))

    def draw():
        noise = rng.standard_normal((len(labels), WIDTH))
        return centers[labels] + 1.5 * noise

    order = rng.permutation(len(labels))
    return {
        "embeddings": draw()[order],
        "labels": labels[order],
        "past": draw(),
        "past_labels": labels,
        "class_weights": rng.standard_normal((CLASSES, WIDTH)),
    }


def with_weights(loss: torch.nn.Module, weights: np.ndarray):
    """Gives a loss over classes its weights [C, D]."""
    weights = torch.tensor(weights)
    if hasattr(loss, "W"):
        loss.W.data = weights.T.clone()
    else:
        loss.weight.data = weights
    return loss.double()


def mined(loss, miner):
    """A loss of pytorch-metric-learning over what a miner chooses."""
    return lambda x, y: loss(x, y, miner(x, y))


def all_losses(inputs: dict[str, np.ndarray]) -> dict:
    """(embeddings, labels) -> loss, by name."""
    weights = inputs["class_weights"]
    distance = LpDistance(normalize_embeddings=False)
    triplet = losses.TripletMarginLoss(MARGIN, distance=distance)
    size = {"num_classes": CLASSES, "embedding_size": WIDTH}
    by_oml = {
        "all": AllTripletsMiner(),
        "hard": HardTripletsMiner(),
        "n_hard": NHardTripletsMiner((2, 3), (2, 5)),
        "hard_cluster": HardClusterMiner(),
    }
    found = {
        f"oml {name} {miner}": TripletLossWithMiner(margin, by_oml[miner])
        for name, margin in (("triplet", MARGIN), ("soft_triplet", None))
        for miner in by_oml
    }
    return found | {
        "oml arcface": with_weights(
            ArcFaceLoss(WIDTH, CLASSES, m=0.5, s=16), weights
        ),
        "pml triplet all": triplet,
        "pml triplet hard": mined(
            triplet, miners.BatchHardMiner(distance=distance)
        ),
        "pml triplet semi_hard": mined(
            triplet,
            miners.TripletMarginMiner(MARGIN, "semihard", distance=distance),
        ),
        "pml contrastive": losses.ContrastiveLoss(0, 3, distance=distance),
        "pml supcon": losses.SupConLoss(0.2),
        "pml ntxent": losses.NTXentLoss(0.2),
        "pml multi_similarity": mined(
            losses.MultiSimilarityLoss(2, 50, 0.5),
            miners.MultiSimilarityMiner(0.1),
        ),
        "pml arcface": with_weights(
            losses.ArcFaceLoss(**size, margin=np.degrees(0.5), scale=16),
            weights,
        ),
        "pml cosface": with_weights(
            losses.CosFaceLoss(**size, margin=0.35, scale=16), weights
        ),
    }


def loss_goldens(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Values and gradients of the losses."""
    found = {}
    labels = torch.tensor(inputs["labels"])
    for name, loss in all_losses(inputs).items():
        x = torch.tensor(inputs["embeddings"], requires_grad=True)
        value = loss(x, labels)
        value.backward()
        found[f"loss {name}"] = value.detach().numpy()
        found[f"gradient {name}"] = x.grad.numpy()
    return found


def memory_goldens(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Values beside a memory, whose gradients differ: see the tests."""
    found = {}
    distance = LpDistance(normalize_embeddings=False)
    for name, loss in (
        ("contrastive", losses.ContrastiveLoss(0, 3, distance=distance)),
        ("supcon", losses.SupConLoss(0.2)),
        ("triplet", losses.TripletMarginLoss(MARGIN, distance=distance)),
    ):
        # Forty places: the batch drives out a part of the one before it.
        memory = losses.CrossBatchMemory(loss, WIDTH, 40).double()
        for prefix in ("past", "embeddings"):
            labels = "past_labels" if prefix == "past" else "labels"
            value = memory(
                torch.tensor(inputs[prefix]), torch.tensor(inputs[labels])
            )
        found[f"memory pml {name}"] = value.detach().numpy()
    return found


def score_goldens() -> dict[str, np.ndarray]:
    """OML's scores of retrieval and of pairs."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 12, 150)
    embeddings = rng.standard_normal((12, 5))[labels]
    embeddings = embeddings + rng.standard_normal((150, 5))
    query = np.arange(150) < 60
    queries, gallery = np.flatnonzero(query), np.flatnonzero(~query)
    distances = torch.cdist(
        torch.tensor(embeddings[queries]), torch.tensor(embeddings[gallery])
    )
    retrieved = distances.argsort(dim=1)[:, : max(TOP)]
    relevant = [
        torch.tensor(np.flatnonzero(labels[gallery] == label))
        for label in labels[queries]
    ]
    assert all(len(rows) for rows in relevant)
    values = metrics.calc_retrieval_metrics(
        list(retrieved), relevant, None, TOP, TOP, TOP, verbose=False
    )
    found = {
        "retrieval embeddings": embeddings,
        "retrieval labels": labels,
        "retrieval query": query,
    }
    for name, by_k in values.items():
        for k, value in by_k.items():
            found[f"retrieval {name} {k}"] = np.array(float(value))
    near, far = rng.normal(1, 0.5, 203), rng.normal(2, 0.6, 311)
    rates = metrics.calc_fnmr_at_fmr(near, far, RATES)
    return found | {
        "pairs near": near,
        "pairs far": far,
        "pairs rates": np.array(RATES),
        "pairs fnmr": rates.numpy(),
    }


def main():
    """Writes the files."""
    inputs = make_inputs()
    found = inputs | loss_goldens(inputs) | memory_goldens(inputs)
    for path, arrays in (
        (ROOT / "tests/training/tasks/goldens/metric_losses.npz", found),
        (ROOT / "tests/metrics/goldens/verification.npz", score_goldens()),
    ):
        path.parent.mkdir(exist_ok=True)
        np.savez_compressed(path, **arrays)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
