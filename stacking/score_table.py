"""The score table, as a person reads it in the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from reports.ensemble import title

# Columns and the widths of their cells, in order; and which are left to the
# report, the first of these first, where a line is too short for all.
_COLUMNS = {
    "macro-F1": 8,
    "95 % interval": 13,
    "accuracy": 8,
    "log-loss": 8,
    "ECE": 6,
    "test F1": 7,
    "test acc": 8,
}
_LEFT_OUT = ("ECE", "95 % interval", "log-loss", "test acc", "accuracy")


def score_table(results: dict[str, Any], width: int) -> Table:
    """One row per model and meta-learner, from the content of scores.json.

    Args:
      results: that content.
      width: of the terminal, in characters.
    """
    scores, test = results["scores"], results["test_scores"]
    heads = [name for name in _COLUMNS if test or not name.startswith("test")]
    longest = max(len(title(name)) for name in scores)
    for name in _LEFT_OUT:
        if width < longest + sum(_COLUMNS[head] + 3 for head in heads) + 1:
            heads = [head for head in heads if head != name]
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"Out-of-fold scores on {results['rows']:,} validation rows",
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        padding=(0, 1),
    )
    table.add_column("")  # A name is wrapped rather than a number cut.
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    best = max(entry["macro_f1"] for entry in scores.values())
    breaks = (len(results["families"]) - 1, len(scores) - 2)
    for index, (name, entry) in enumerate(scores.items()):
        low, high = entry["macro_f1_interval"]
        f1 = f"{entry['macro_f1']:.4f}"
        cells = {
            "macro-F1": f"[green]{f1}[/]" if entry["macro_f1"] == best else f1,
            "95 % interval": f"{low:.3f}–{high:.3f}",
            "accuracy": f"{entry['accuracy']:.4f}",
            "log-loss": f"{entry['log_loss']:.4f}",
            "ECE": f"{entry['calibration_error']:.4f}",
        }
        if test:
            cells["test F1"] = f"{test[name]['macro_f1']:.4f}"
            cells["test acc"] = f"{test[name]['accuracy']:.4f}"
        table.add_row(
            escape(title(name)),
            *(cells[head] for head in heads),
            end_section=index in breaks,
            style="bold" if name == "blend" else None,
        )
    return table
