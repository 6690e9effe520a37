"""The report of one run: how it trained, and what its best weights answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from metrics import classification
from reports import curves
from reports.mistakes import (
    Answers,
    class_section,
    confusion_section,
    mistakes_section,
)
from reports.page import escape, figures, section, write_page


def run_report(run_dir: str | Path) -> Path:
    """Writes `<run_dir>/report.html`.

    From `metrics.jsonl` (training curves), `config.json` and
    `logits/val.npz` (confusions, classes, mistakes); what a run does not
    have, as a pretraining has no logits, is left out. A run over all folds
    shows the curves of the folds inside it.

    Returns:
      The path of the report.

    Raises:
      UserError: the folder holds neither history nor logits.
    """
    run = Path(run_dir)
    histories = curves.read_histories(run)
    config = _config(run)
    answers, classes, metadata = _answers(run)
    if not histories and answers is None:
        raise UserError(
            f"{run} has neither metrics.jsonl nor logits/val.npz; train a "
            "model into it first"
        )
    name = str(config.get("model") or metadata.get("model") or run.name)
    sections = [_headline(histories, answers, classes)]
    if histories:
        charts = [
            curves.loss_chart(histories),
            curves.score_chart(histories),
            curves.rate_chart(histories),
            curves.gradient_chart(histories),
        ]
        cards = "".join(
            f'<div class="card">{chart}</div>' for chart in charts if chart
        )
        sections.append(
            section(
                "Training",
                f'<div class="grid wide">{cards}</div>',
                "Over epochs. The ring is the best evaluation; an upright "
                "line is a new stage.",
            )
        )
    if troubles := curves.troubles(histories):
        items = "".join(f"<li>{escape(text)}</li>" for text in troubles)
        sections.append(
            section("Skipped and repeated", f'<ul class="card">{items}</ul>')
        )
    if answers is not None:
        data = config.get("data") or metadata.get("data")
        sections += [
            confusion_section(answers, classes),
            class_section(answers, classes),
            mistakes_section(answers, classes, data),
        ]
    if config:
        text = escape(json.dumps(config, indent=2))
        sections.append(
            '<details class="card"><summary>Configuration</summary>'
            f"<pre>{text}</pre></details>"
        )
    lead = f"Run {escape(run.name)}."
    if answers is not None:
        lead += (
            f" {len(answers.ids):,} validation rows, {len(classes)} classes, "
            "none of the rows seen in training."
        )
    return write_page(
        run / "report.html", f"{name}: training report", lead, sections
    )


def _config(run: Path) -> dict[str, Any]:
    try:
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _answers(run: Path) -> tuple[Answers | None, list[str], dict[str, Any]]:
    """Answers of the exported validation logits, classes and metadata."""
    path = run / "logits" / "val.npz"
    if not path.exists():
        return None, [], {}
    with np.load(path, allow_pickle=False) as archive:
        logits, labels = archive["logits"], archive["labels"]
        ids, classes = archive["ids"], archive["classes"]
        metadata = json.loads(str(archive["metadata"]))
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exp / exp.sum(axis=1, keepdims=True)
    known = labels >= 0
    probabilities, labels = probabilities[known], labels[known]
    answers = Answers(
        title="validation",
        ids=ids[known].astype(str),
        labels=labels,
        predicted=probabilities.argmax(axis=1),
        confidence=probabilities.max(axis=1),
        true=probabilities[np.arange(len(labels)), labels],
    )
    return answers, classes.astype(str).tolist(), metadata


def _headline(
    histories: Sequence[curves.History],
    answers: Answers | None,
    classes: list[str],
) -> str:
    items = []
    if answers is not None:
        confusion = classification.confusion_matrix(
            answers.labels, answers.predicted, len(classes)
        )
        low, high = classification.bootstrap_interval(confusion)
        items += [
            (
                "validation macro-F1",
                f"{float(classification.macro_f1_from_confusion(confusion)):.4f}",
                f"95 % interval {low:.3f} to {high:.3f}",
            ),
            (
                "validation accuracy",
                f"{float(classification.accuracy_from_confusion(confusion)):.4f}",
                "mean logits over the test-time views",
            ),
        ]
    bests = [history.best for history in histories if history.best]
    folds = f", {len(histories)} folds" if len(histories) > 1 else ""
    if bests:
        value = np.mean([best["val_macro_f1"] for best in bests])
        where = f"mean of {len(bests)} folds"
        if not folds:
            where = f"epoch {bests[0]['epoch']:.4g}"
        items.append(
            ("best while training", f"{value:.4f}", f"{where}, centre crop")
        )
    lasts = [history.train[-1] for history in histories if history.train]
    if lasts:
        items.append(
            (
                "trained",
                f"{lasts[0]['epoch']:.4g} epochs",
                f"{lasts[0].get('step', 0):,} steps{folds}",
            )
        )
    return figures(items)
