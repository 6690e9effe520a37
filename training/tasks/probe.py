"""What a frozen encoder knows of the classes that it was not told.

A linear probe (logistic regression on standardised features) and kNN, fitted
on the training rows and scored on the fold that the encoder has not seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from input_pipeline.transforms import mixing
from input_pipeline.transforms.views import EvalTransform
from jax_models import cpu_kernels
from metrics import classification, retrieval
from run_folder import layout
from training.loop.predict import PredictStep, predict
from training.multihost import comm

if TYPE_CHECKING:
    from run_folder.artifacts import ArtifactWriter
    from training.data import Data
    from training.tasks.base import Task

# Inverse strengths of the L2 penalty; scikit-learn's C.
PENALTIES = tuple(10.0**power for power in range(-4, 2))
NEIGHBOURS, TEMPERATURE = 20, 0.07
_ITERATIONS = 200

# (model, normalised images [B, H, W, 3]) -> features float32 [B, D]
Pooled = Callable[[nnx.Module, jax.Array], jax.Array]


class Features(NamedTuple):
    """Of some rows of known class.

    Attributes:
      values: float32 [N, D].
      labels: int32 [N].
    """

    values: np.ndarray
    labels: np.ndarray


def write(
    task: Task,
    data: Data,
    writer: ArtifactWriter,
    pooled: Pooled,
    params: dict,
    batch_stats: dict,
) -> str:
    """Probes the encoder of a pretraining and writes `probe.json`.

    To be called in all processes.

    Args:
      task: that was pretrained.
      data: of the run.
      writer: keeps the manifest of what is written.
      pooled: gives the features that a classifier would start from.
      params: of the best model.
      batch_stats: of the same.

    Returns:
      A phrase for people on both scores, or on why there are none.
    """
    if reason := _cannot(data):
        return f"not probed: {reason}"
    transform = EvalTransform(("center",), task.config.image_size)
    step = _make_step(task, pooled, data.mesh)
    known = data.source.labelled

    def features(rows: np.ndarray) -> tuple[Features, np.ndarray]:
        batches = data.batches(known, rows, transform)
        found = predict(step, params, batch_stats, batches, rows, data.mesh)
        read = ~found.bad
        return (
            Features(found.logits[read, 0], known.labels[rows][read]),
            rows[read],
        )

    fitted_on, rows = features(data.train_rows)
    scored_on, _ = features(data.val_rows)

    def score() -> str:
        halves = data.halves(rows)
        found = scores(fitted_on, scored_on, halves, len(data.source.classes))
        writer.json(layout.PROBE, found)
        return _told(found)

    return comm.run_on_primary(score)


def scores(
    fitted_on: Features, scored_on: Features, halves: np.ndarray, classes: int
) -> dict[str, Any]:
    """Returns accuracy and macro-F1 of both, with intervals, as JSON.

    Args:
      fitted_on: the training rows.
      scored_on: the others.
      halves: int [N], a division of the training rows that chooses C.
      classes: how many there are.
    """
    votes = retrieval.vote(
        scored_on.values,
        fitted_on.values,
        fitted_on.labels,
        classes,
        NEIGHBOURS,
        TEMPERATURE,
    )
    penalty = choose_penalty(fitted_on, halves)
    predicted = _regression(fitted_on, penalty).predict(scored_on.values)
    most = np.bincount(fitted_on.labels, minlength=classes).argmax()

    def scored(answers: np.ndarray) -> dict[str, Any]:
        confusion = classification.confusion_matrix(
            scored_on.labels, answers, classes
        )
        found: dict[str, Any] = {}
        for name, score in (
            ("accuracy", classification.accuracy_from_confusion),
            ("macro_f1", classification.macro_f1_from_confusion),
        ):
            found[name] = float(score(confusion))
            found[f"{name}_interval"] = list(
                classification.bootstrap_interval(confusion, score)
            )
        return found

    return {
        "fitted_on": len(fitted_on.labels),
        "scored_on": len(scored_on.labels),
        "linear": {"C": penalty, **scored(predicted)},
        "knn": {
            "k": NEIGHBOURS,
            "temperature": TEMPERATURE,
            **scored(votes.argmax(axis=1)),
        },
        "most_frequent_class": float((scored_on.labels == most).mean()),
    }


def choose_penalty(features: Features, halves: np.ndarray) -> float:
    """Returns the C of highest accuracy, by two-fold cross-validation.

    Of equals the smallest. Each half predicts the other.
    """
    accuracies = []
    for penalty in PENALTIES:
        right = 0
        for half in (0, 1):
            own, other = halves == half, halves != half
            if len(np.unique(features.labels[own])) < 2 or not other.any():
                continue  # Nothing can be fitted, or asked.
            fitted = _regression(
                Features(features.values[own], features.labels[own]), penalty
            )
            answers = fitted.predict(features.values[other])
            right += int((answers == features.labels[other]).sum())
        accuracies.append(right)
    return PENALTIES[int(np.argmax(accuracies))]


def _regression(features: Features, penalty: float):
    """A fitted scikit-learn pipeline; its import takes a second."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=penalty, max_iter=_ITERATIONS)
    )
    with warnings.catch_warnings():
        # A weak penalty on separable classes never converges, nor need it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(features.values, features.labels)


def _cannot(data: Data) -> str:
    """Why no probe can be fitted, or ''."""
    labels = data.source.labelled.labels
    train, val = labels[data.train_rows], labels[data.val_rows]
    if data.source.mask_pixels is not None:
        return "the photos have masks and no classes"
    if min(train.min(), val.min()) < 0 or len(np.unique(train)) < 2:
        return "the photos have no classes"
    if not np.isin(val, train).any():
        return "no class is among the training and the validation photos"
    return ""


def _make_step(
    task: Task,
    pooled: Pooled,
    mesh: Mesh,
) -> PredictStep:
    """Returns the jitted step: images uint8 [B, 1, H, W, 3] -> [B, 1, D]."""
    abstract_model, constants = task.abstract_model, task.statistics.channels

    @jax.jit
    @cpu_kernels.for_mesh(mesh)
    def step(params, batch_stats, images, constants):
        model = abstract_model.merge(params, batch_stats)
        model.eval()
        images = mixing.normalize(images[:, 0], **constants)
        return pooled(model, images)[:, None]

    # As arguments: folds differ in them, and need not compile anew.
    return lambda params, batch_stats, images: step(
        params, batch_stats, images, constants
    )


def _told(found: dict[str, Any]) -> str:
    def text(name: str) -> str:
        low, high = found[name]["accuracy_interval"]
        return f"{found[name]['accuracy']:.1%} ({low:.1%} to {high:.1%})"

    return (
        f"on the frozen encoder a linear probe gets {text('linear')} of the "
        f"validation photos right, kNN {text('knn')}"
    )
