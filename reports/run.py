"""The report of one run: its training curves and the sections of its task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core import paths
from core.errors import UserError
from reports import curves, run_facts
from reports.page import Figure, Section, template, write_page
from run_folder import layout, telemetry
from run_folder.history import History, read_histories


def run_report(
    workdir: str | Path, sections: Sequence[Section] = (), told: str = ""
) -> Path:
    """Writes `<workdir>/report.html`.

    A run over all folds shows the curves of the folds inside it.

    Args:
      workdir: the run folder.
      sections: of the run's task, in order.
      told: a sentence on how far the run is, or on its scores.

    Returns:
      The path of the report.

    Raises:
      UserError: there is nothing to report on.
    """
    run = paths.make_path(workdir)
    histories = read_histories(run)
    if not histories and not sections:
        raise UserError(
            f"{run} has no {layout.METRICS} and no predictions; train a model "
            "into it first"
        )
    config = layout.read_config(run)
    metric = curves.ranking_metric(histories, config)
    name = str((config or {}).get("model") or run.name)
    macros, parts = template("run.html"), []
    if histories:
        charts = [
            *curves.loss_chart(histories, metric),
            *curves.score_charts(histories, metric),
            *curves.rate_chart(histories),
            *curves.gradient_chart(histories),
        ]
        note = (
            "Over epochs. The ring is the best evaluation; an upright line is "
            "a new stage."
        )
        parts.append(Section("Training", macros.training(charts), note))
    if incidents := curves.incidents(histories):
        body = macros.incidents(incidents)
        parts.append(Section("Skipped and repeated", body))
    parts += sections
    measured = telemetry.read(run)
    parts += run_facts.speed_section(measured)
    parts += run_facts.augment_section(config)
    text = json.dumps(config, indent=2) if config else ""
    parts += run_facts.origin_section(measured, text)
    return write_page(
        run / layout.REPORT,
        f"{name}: training report",
        f"Run {run.name}. {told}".strip(),
        parts,
        _figures(histories, metric),
    )


def _figures(histories: Sequence[History], metric: str) -> list[Figure]:
    figures = []
    bests = curves.bests(histories, metric)
    if bests:
        value = np.mean([value for _, value in bests])
        where = (
            f"mean of {len(bests)} folds"
            if len(histories) > 1
            else f"epoch {bests[0][0]:.4g}"
        )
        figures.append(
            Figure(
                f"best {curves.title(metric)} while training",
                f"{value:.4f}",
                where,
            )
        )
    lasts = [history.last for history in histories if history.last]
    if lasts:
        folds = f", {len(histories)} folds" if len(histories) > 1 else ""
        figures.append(
            Figure(
                "epochs trained",
                f"{lasts[0].epoch:.4g}",
                f"{lasts[0].step:,} steps{folds}",
            )
        )
    return figures
