"""What was answered: confusions, classes and the images that went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metrics import classification
from reports.charts import confusion_heatmap
from reports.page import escape, section
from reports.thumbnails import thumbnails

_SHOWN = 48
# Beyond this the heatmap is a fog; the list of pairs says more.
_HEATMAP_CLASSES = 60
_PAIRS = 12


@dataclass(frozen=True)
class Answers:
    """The answers to N labelled rows.

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


def confusion_section(answers: Answers, classes: Sequence[str]) -> str:
    """The confusion matrix beside the pairs most often confused."""
    confusion = classification.confusion_matrix(
        answers.labels, answers.predicted, len(classes)
    )
    wrong = int(confusion.sum() - np.trace(confusion))
    note = (
        f"{wrong:,} of {len(answers.labels):,} {escape(answers.title)} rows "
        "went wrong. Rows are true classes, columns are answers; the shade "
        "is the share of the row."
    )
    parts = []
    if len(classes) <= _HEATMAP_CLASSES:
        heatmap = confusion_heatmap(confusion, classes)
        parts.append(f'<div class="card scroll">{heatmap}</div>')
    if wrong:
        parts.append(_pairs(confusion, classes))
    body = f'<div class="split">{"".join(parts)}</div>'
    return section(f"Confusions, {answers.title}", body, note)


def _pairs(confusion: np.ndarray, classes: Sequence[str]) -> str:
    """The pairs of classes most often confused."""
    off = confusion.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:_PAIRS]
    rows = [
        f"<tr><td>{escape(classes[i])} → <span class=said>"
        f"{escape(classes[j])}</span></td><td>{off[i, j]}</td>"
        f"<td>{off[i, j] / confusion[i].sum():.0%}</td></tr>"
        for i, j in (divmod(int(cell), len(classes)) for cell in order)
        if off[i, j] > 0
    ]
    return (
        '<div class="card scroll"><h3>Most frequent</h3><table>'
        "<tr><th>true → answer</th><th>rows</th><th>of its class</th></tr>"
        f"{''.join(rows)}</table></div>"
    )


def class_section(answers: Answers, classes: Sequence[str]) -> str:
    """F1, precision, recall and size of every class, worst first."""
    confusion = classification.confusion_matrix(
        answers.labels, answers.predicted, len(classes)
    )
    f1 = classification.f1_from_confusion(confusion)
    hits = np.diag(confusion)
    support, answered = confusion.sum(axis=1), confusion.sum(axis=0)
    rows = []
    for index in np.argsort(np.nan_to_num(f1, nan=2.0), kind="stable"):
        if np.isnan(f1[index]):
            continue
        share = 100 * f1[index]
        rows.append(
            f"<tr><td>{escape(classes[index])}</td>"
            f'<td class="plot"><div class="bar"><i style="width:'
            f'{share:.1f}%;background:var(--accent)"></i></div></td>'
            f"<td>{f1[index]:.3f}</td>"
            f"<td>{hits[index] / max(answered[index], 1):.3f}</td>"
            f"<td>{hits[index] / max(support[index], 1):.3f}</td>"
            f"<td>{support[index]:,}</td></tr>"
        )
    body = (
        '<div class="card scroll"><table><tr><th>class</th><th></th>'
        "<th>F1</th><th>precision</th><th>recall</th><th>rows</th></tr>"
        f"{''.join(rows)}</table></div>"
    )
    return section(
        f"Classes, {answers.title}",
        body,
        "Worst first. Macro-F1 is the mean of the F1 column, so a rare class "
        "counts as much as a common one.",
    )


def mistakes_section(
    answers: Answers, classes: Sequence[str], data: dict[str, Any] | None
) -> str:
    """The wrong answers it was surest of, as pictures."""
    wrong = np.flatnonzero(answers.labels != answers.predicted)
    wrong = wrong[np.argsort(-answers.confidence[wrong], kind="stable")]
    title = f"What it got wrong, {answers.title}"
    if not len(wrong):
        return section(title, "", "Nothing: every answer is right.")
    shown = wrong[:_SHOWN]
    pictures, problem = thumbnails(data, [str(i) for i in answers.ids[shown]])
    cards = []
    for row in shown:
        name = str(answers.ids[row])
        picture = pictures.get(name, '<div class="none">no picture</div>')
        confidence = float(answers.confidence[row])
        cards.append(
            f'<figure class="mistake">{picture}<figcaption>'
            f'<span class="sure">{confidence:.0%}</span>'
            f"<b>{escape(classes[answers.labels[row]])}</b> → "
            f'<b class="said">{escape(classes[answers.predicted[row]])}</b>'
            f'<div class="bar" title="confidence {confidence:.0%}, true '
            f'class {float(answers.true[row]):.0%}"><i style="width:'
            f'{100 * confidence:.0f}%"></i></div>'
            f'<div class="name">{escape(name)}</div>'
            "</figcaption></figure>"
        )
    count = (
        f"The {len(shown)} surest of {len(wrong):,} mistakes."
        if len(wrong) > len(shown)
        else f"All {len(wrong)} mistakes, the surest first."
        if len(wrong) > 1
        else "The only mistake."
    )
    note = (
        f"{count} True class → <span class=said>answer</span>, how sure it "
        "was, and the image's id."
    )
    if problem:
        note += f" {escape(problem)}"
    return section(title, f'<div class="mistakes">{"".join(cards)}</div>', note)
