"""The score table, as a person reads it in the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from reports.ensemble import title


def score_table(results: dict[str, Any], width: int) -> Table:
    """One row per model and meta-learner, from the content of scores.json.

    Args:
      results: that content.
      width: of the terminal, in characters.
    """
    scores, test = results["scores"], results["test_scores"]
    longest = max(len(title(name)) for name in scores)
    # Where it does not fit, the calibration error is left to the report.
    calibration = width >= longest + (83 if test else 63)
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"Out-of-fold scores on {results['rows']:,} validation rows",
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        padding=(0, 1),
    )
    table.add_column("", no_wrap=True)
    heads = ["macro-F1", "95 % interval", "accuracy", "log-loss"]
    heads += ["ECE"] if calibration else []
    heads += ["test F1", "test acc"] if test else []
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    best = max(entry["macro_f1"] for entry in scores.values())
    breaks = (len(results["families"]) - 1, len(scores) - 2)
    for index, (name, entry) in enumerate(scores.items()):
        low, high = entry["macro_f1_interval"]
        f1 = f"{entry['macro_f1']:.4f}"
        cells = [
            escape(title(name)),
            f"[green]{f1}[/]" if entry["macro_f1"] == best else f1,
            f"{low:.3f}–{high:.3f}",
            f"{entry['accuracy']:.4f}",
            f"{entry['log_loss']:.4f}",
        ]
        if calibration:
            cells.append(f"{entry['calibration_error']:.4f}")
        if test:
            cells.append(f"{test[name]['macro_f1']:.4f}")
            cells.append(f"{test[name]['accuracy']:.4f}")
        table.add_row(
            *cells,
            end_section=index in breaks,
            style="bold" if name == "blend" else None,
        )
    return table
