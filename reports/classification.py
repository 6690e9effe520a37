"""Sections on a classifier: confusions, scores by class, worst mistakes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metrics import classification
from reports.charts import Line, line_chart
from reports.curves import Chart
from reports.heatmap import confusion_heatmap
from reports.page import Figure, Section, template
from reports.thumbnails import Pictures, thumbnails
from run_folder import layout
from run_folder.predictions import read_logits

_SHOWN = 48
# Beyond this the heatmap is a fog; the list of pairs says more.
_HEATMAP_CLASSES = 60
_PAIRS = 12
# Of the reliability diagram; and a gap that is worth telling.
_BINS, _GAP = 10, 0.03
_TEMPLATE = "classification.html"


@dataclass(frozen=True)
class Predictions:
    """Predictions for N labelled rows.

    Attributes:
      title: which rows these are, in a few words.
      ids: str [N].
      labels, predicted: int [N].
      confidence: float [N], the highest probability.
      true: float [N], the probability of the true class.
    """

    title: str
    ids: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    true: np.ndarray

    def confusion(self, num_classes: int) -> np.ndarray:
        """Returns the confusion matrix, int64 [C, C]."""
        return classification.confusion_matrix(
            self.labels, self.predicted, num_classes
        )


def classification_sections(
    workdir: Path, pictures: Pictures | None = None
) -> list[Section]:
    """Returns scores, confusions, classes and mistakes of a run.

    From its validation logits; [] for a run without them.

    Args:
      workdir: the run folder.
      pictures: reads the images that went wrong; see `Pictures`.

    Raises:
      UserError: the logits file is damaged.
    """
    predictions, classes = read_predictions(workdir)
    if predictions is None:
        return []
    first, *rest = confusion_sections(predictions, classes)
    figures = _figures(predictions, classes)
    return [
        dataclasses.replace(first, figures=figures),
        *rest,
        calibration_section(predictions),
        mistakes_section(predictions, classes, pictures),
    ]


def read_predictions(workdir: Path) -> tuple[Predictions | None, list[str]]:
    """Returns what a run predicted for its validation rows, and the classes.

    None for a run without logits.

    Args:
      workdir: the run folder.

    Raises:
      UserError: the logits file is damaged.
    """
    path = layout.logits_path(workdir, "val")
    if not path.exists():
        return None, []
    logits = read_logits(path)
    known = logits.labels >= 0
    labels = logits.labels[known]
    log_probs = classification.log_softmax(logits.logits[known])
    probabilities = np.exp(log_probs)
    predictions = Predictions(
        title="validation",
        ids=logits.ids[known],
        labels=labels,
        predicted=log_probs.argmax(axis=1),
        confidence=probabilities.max(axis=1),
        true=probabilities[np.arange(len(labels)), labels],
    )
    return predictions, logits.classes.tolist()


def confusion_sections(
    predictions: Predictions, classes: Sequence[str]
) -> list[Section]:
    """Returns the confusions and the scores by class."""
    confusion = predictions.confusion(len(classes))
    return [
        _confusion_section(predictions, confusion, classes),
        _class_section(predictions, confusion, classes),
    ]


def calibration_section(predictions: Predictions) -> Section:
    """Returns accuracy over confidence: a reliability diagram.

    After Guo et al. 2017, "On Calibration of Modern Neural Networks".
    """
    right = predictions.predicted == predictions.labels
    error = classification.expected_calibration_error(
        predictions.confidence, right
    )
    title = f"Calibration, {predictions.title}"
    if not len(right):
        return Section(title, note="There is no labelled row.")
    bins = np.minimum((predictions.confidence * _BINS).astype(int), _BINS - 1)
    filled = np.unique(bins)
    confidence = np.array(
        [predictions.confidence[bins == b].mean() for b in filled]
    )
    accuracy = np.array([right[bins == b].mean() for b in filled])
    lines = [
        Line(
            "perfect", np.array([0, 1]), np.array([0, 1]), "var(--faint)", True
        ),
        Line("accuracy at this confidence", confidence, accuracy),
    ]
    chart = Chart(line_chart(lines, "accuracy over confidence"), tuple(lines))
    gap = float(predictions.confidence.mean() - right.mean())
    how = "says about what it knows"
    if abs(gap) > _GAP:
        how = (
            "is too sure of itself"
            if gap > 0
            else "is less sure than it could be"
        )
    return Section(
        title,
        template(_TEMPLATE).calibration(chart),
        f"The model {how}: its mean confidence is "
        f"{predictions.confidence.mean():.1%}, its accuracy "
        f"{right.mean():.1%}; the expected calibration error is {error:.3f}. "
        "Stacking corrects this with a temperature.",
    )


def mistakes_section(
    predictions: Predictions,
    classes: Sequence[str],
    pictures: Pictures | None,
) -> Section:
    """Returns the most confident wrong predictions, as pictures."""
    wrong = np.flatnonzero(predictions.labels != predictions.predicted)
    order = np.argsort(-predictions.confidence[wrong], kind="stable")
    wrong = wrong[order]
    title = f"What it got wrong, {predictions.title}"
    if not len(wrong):
        return Section(title, note="Nothing: every prediction is right.")
    shown = wrong[:_SHOWN]
    ids = predictions.ids[shown].tolist()
    found, problem = thumbnails(pictures, ids)
    rows = [
        {
            "id": name,
            "picture": found.get(name),
            "true": classes[predictions.labels[row]],
            "predicted": classes[predictions.predicted[row]],
            "confidence": float(predictions.confidence[row]),
            "true_probability": float(predictions.true[row]),
        }
        for name, row in zip(ids, shown, strict=True)
    ]
    count = (
        f"The {len(shown)} most confident of {len(wrong):,} mistakes."
        if len(wrong) > len(shown)
        else f"All {len(wrong)} mistakes, the most confident first."
        if len(wrong) > 1
        else "The only mistake."
    )
    macros = template(_TEMPLATE)
    note = macros.mistakes_note(count, problem)
    return Section(title, macros.mistakes(rows), note)


def _figures(
    predictions: Predictions, classes: Sequence[str]
) -> tuple[Figure, ...]:
    confusion = predictions.confusion(len(classes))
    low, high = classification.bootstrap_interval(confusion)
    macro_f1 = float(classification.macro_f1_from_confusion(confusion))
    accuracy = float(classification.accuracy_from_confusion(confusion))
    return (
        Figure(
            "validation macro-F1",
            f"{macro_f1:.4f}",
            f"95 % interval {low:.3f} to {high:.3f}",
        ),
        Figure(
            "validation accuracy",
            f"{accuracy:.4f}",
            f"{len(predictions.ids):,} rows not seen in training",
        ),
    )


def _confusion_section(
    predictions: Predictions, confusion: np.ndarray, classes: Sequence[str]
) -> Section:
    """The confusion matrix beside the pairs most often confused."""
    wrong = int(confusion.sum() - np.trace(confusion))
    heatmap = ""
    if len(classes) <= _HEATMAP_CLASSES:
        heatmap = confusion_heatmap(confusion, classes)
    return Section(
        f"Confusions, {predictions.title}",
        template(_TEMPLATE).confusion(heatmap, _pairs(confusion, classes)),
        f"{wrong:,} of {len(predictions.labels):,} {predictions.title} rows "
        "went wrong. Rows are true classes, columns are predicted classes; "
        "the shade is the share of the row.",
    )


def _pairs(confusion: np.ndarray, classes: Sequence[str]) -> list[dict]:
    """The pairs of classes most often confused."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
    return [
        {
            "true": classes[i],
            "predicted": classes[j],
            "rows": int(wrong[i, j]),
            "share": float(wrong[i, j] / confusion[i].sum()),
        }
        for i, j in (divmod(int(cell), len(classes)) for cell in order)
        if wrong[i, j] > 0
    ]


def _class_section(
    predictions: Predictions, confusion: np.ndarray, classes: Sequence[str]
) -> Section:
    """F1, precision, recall and size of every class that occurs."""
    f1 = classification.f1_from_confusion(confusion)
    hits = np.diag(confusion)
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    rows = [
        {
            "name": classes[index],
            "f1": float(f1[index]),
            "precision": float(hits[index] / max(predicted[index], 1)),
            "recall": float(hits[index] / max(support[index], 1)),
            "support": int(support[index]),
        }
        for index in np.argsort(f1, kind="stable")  # NaN comes last.
        if not np.isnan(f1[index])
    ]
    return Section(
        f"Classes, {predictions.title}",
        template(_TEMPLATE).classes(rows),
        "Worst first. Macro-F1 is the mean of the F1 column, so a rare class "
        "counts as much as a common one.",
    )
