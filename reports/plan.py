"""What a run is going to do: its plan, and its learning rates as a curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reports import curves
from reports.page import escape, section, write_page


def plan_report(
    path: Path, title: str, lines: Mapping[str, str], rates: Sequence[dict]
) -> Path:
    """Writes the plan of a run as a page.

    Args:
      path: of the html file.
      title: plain text.
      lines: {heading: text}, as the run prints them.
      rates: one dict per step to draw, as metrics.jsonl has them: `epoch`,
        `stage`, `learning_rate` and perhaps `head_learning_rate`.

    Returns:
      `path`.
    """
    rows = "".join(
        f"<tr><th>{escape(heading)}</th>"
        f'<td style="text-align: left">{escape(text)}</td></tr>'
        for heading, text in lines.items()
    )
    history: list[dict[str, Any]] = list(rates)
    chart = curves.rate_chart([curves.History(history, [])])
    return write_page(
        path,
        title,
        "Nothing has been trained yet.",
        [
            f'<div class="card scroll"><table>{rows}</table></div>',
            section(
                "Learning rate",
                f'<div class="card">{chart}</div>',
                "Over epochs; dashed lines are new stages.",
            ),
        ],
    )
