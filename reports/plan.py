"""What a run is going to do: its plan, and its learning rates as a curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from reports import curves
from reports.page import Section, template, write_page
from run_folder.history import History, TrainRecord


def plan_report(
    path: Path,
    title: str,
    lines: Mapping[str, str],
    rates: Sequence[Mapping[str, float]],
) -> Path:
    """Writes the plan of a run as a page.

    Args:
      path: of the html file.
      title: plain text.
      lines: {heading: text}, as the run prints them.
      rates: one per step to draw: `epoch`, `stage`, and the learning rates
        under the names that metrics.jsonl has.

    Returns:
      `path`.
    """
    records = tuple(
        TrainRecord(step, int(entry["stage"]), entry["epoch"], entry)
        for step, entry in enumerate(rates)
    )
    macros = template("run.html")
    return write_page(
        path,
        title,
        "Nothing has been trained yet.",
        [
            Section("", macros.plan(lines)),
            Section(
                "Learning rate",
                macros.rates(curves.rate_chart([History(records)])),
                "Over epochs; dashed lines are new stages.",
            ),
        ],
    )
