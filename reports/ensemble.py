"""The report of a stack: is the blend good, and where does it go wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports import curves
from reports.charts import HALF, interval
from reports.mistakes import (
    Answers,
    class_section,
    confusion_section,
    mistakes_section,
)
from reports.page import escape, figures, section, write_page

__all__ = ["Answers", "ensemble_report"]

TITLES = {
    "soft_vote": "soft vote",
    "greedy_vote": "greedy vote",
    "logistic": "logistic regression",
    "catboost": "CatBoost",
    "lightgbm": "LightGBM",
    "blend": "final blend",
}


def title(name: str) -> str:
    """How a member of the stack is called wherever a person reads it."""
    return TITLES.get(name, name)


def ensemble_report(
    path: str | Path,
    results: dict[str, Any],
    answers: Sequence[Answers],
    data: dict[str, Any] | None = None,
) -> Path:
    """Writes the report of a stack.

    Args:
      path: of the html file.
      results: the content of scores.json.
      answers: of the blend, one per set of labelled rows; the last one is
        looked at class by class.
      data: the runs' `config.data`, to find the images; None if unknown.

    Returns:
      `path`.
    """
    classes = results["classes"]
    families = results["families"]
    count = f"{len(families)} model{'s' if len(families) != 1 else ''}"
    lead = (
        f"{count}, one answer, over {len(classes)} classes. Every score is "
        "out of fold: temperatures, weights, boosters and blend were fitted "
        "without the rows they are scored on."
    )
    last = answers[-1]
    sections = [
        _headline(results),
        _score_section(results),
        _weights_section(results),
        _curves_section(families),
        confusion_section(last, classes),
        class_section(last, classes),
    ]
    sections += [mistakes_section(part, classes, data) for part in answers]
    return write_page(
        Path(path), "Ensemble report", lead, [part for part in sections if part]
    )


def _headline(results: dict[str, Any]) -> str:
    blend = results["scores"]["blend"]
    low, high = blend["macro_f1_interval"]
    models = [results["scores"][f["name"]] for f in results["families"]]
    best = max(model["macro_f1"] for model in models)
    items = [
        (
            "macro-F1, out of fold",
            f"{blend['macro_f1']:.4f}",
            f"95 % interval {low:.3f} to {high:.3f}",
        ),
        (
            "accuracy, out of fold",
            f"{blend['accuracy']:.4f}",
            f"{results['rows']:,} validation rows",
        ),
    ]
    if results["test_scores"]:
        test = results["test_scores"]["blend"]
        items.append(
            (
                "macro-F1, test",
                f"{test['macro_f1']:.4f}",
                f"{results['test_rows']:,} rows nothing has seen",
            )
        )
    items.append(
        (
            "over the best model",
            f"{blend['macro_f1'] - best:+.4f}",
            f"which alone has {best:.4f}",
        )
    )
    return figures(items)


def _score_section(results: dict[str, Any]) -> str:
    scores, test = results["scores"], results["test_scores"]
    lows = [entry["macro_f1_interval"][0] for entry in scores.values()]
    highs = [entry["macro_f1_interval"][1] for entry in scores.values()]
    best = max(entry["macro_f1"] for entry in scores.values())
    head = (
        "<tr><th></th><th>macro-F1</th><th class=middle>95 % interval</th>"
        "<th>accuracy</th><th>log-loss</th><th>ECE</th>"
    )
    if test:
        head += "<th>test F1</th><th>test acc.</th>"
    rows = [head + "</tr>"]
    models = len(results["families"])
    for index, (name, entry) in enumerate(scores.items()):
        low, high = entry["macro_f1_interval"]
        kind = "break " if index in (models, len(scores) - 1) else ""
        kind += "strong" if name == "blend" else ""
        mark = ' class="best"' if entry["macro_f1"] == best else ""
        plot = interval(entry["macro_f1"], low, high, min(lows), max(highs))
        row = (
            f'<tr class="{kind}"><td>{escape(title(name))}</td>'
            f"<td{mark}>{entry['macro_f1']:.4f}</td>"
            f'<td class="plot" title="{low:.4f} to {high:.4f}">{plot}</td>'
            f"<td>{entry['accuracy']:.4f}</td>"
            f"<td>{entry['log_loss']:.4f}</td>"
            f"<td>{entry['calibration_error']:.4f}</td>"
        )
        if test:
            row += (
                f"<td>{test[name]['macro_f1']:.4f}</td>"
                f"<td>{test[name]['accuracy']:.4f}</td>"
            )
        rows.append(row + "</tr>")
    chance = results["most_common_class"]
    note = (
        "Always answering the most common class would score "
        f"{chance['macro_f1']:.3f} (accuracy {chance['accuracy']:.3f}). "
        "Log-loss and calibration error (ECE): lower is better."
    )
    body = f'<div class="card scroll"><table>{"".join(rows)}</table></div>'
    return section("Scores", body, note)


def _weights_section(results: dict[str, Any]) -> str:
    final = results["final"]
    blocks = [
        _weight_block("Final blend", final["blend_weights"]),
        _weight_block("Soft vote", final["soft_vote_weights"]),
        _weight_block("Greedy vote", final["greedy_vote_weights"]),
    ]
    return section(
        "Weights",
        f'<div class="grid">{"".join(blocks)}</div>',
        "Over temperature-calibrated probabilities, after the last fit on "
        "all validation rows.",
    )


def _weight_block(name: str, weights: dict[str, float]) -> str:
    rows = "".join(
        f'<tr><td title="{escape(title(member))}">{escape(title(member))}</td>'
        f'<td class="plot"><div class="bar"><i '
        f'style="width:{100 * weight:.1f}%;background:var(--accent)"></i>'
        f"</div></td><td>{weight:.2f}</td></tr>"
        for member, weight in sorted(weights.items(), key=lambda item: -item[1])
    )
    return (
        f'<div class="card"><h3>{name}</h3>'
        f'<table class="weights">{rows}</table></div>'
    )


def _curves_section(families: Sequence[dict[str, Any]]) -> str:
    cards = []
    for family in families:
        for run in family["runs"]:
            histories = curves.read_histories(Path(run))
            head = f"<h3>{escape(family['name'])}</h3>"
            if len(family["runs"]) > 1 or Path(run).name != family["name"]:
                head += f'<div class="small soft">{escape(run)}</div>'
            if not histories:
                body = (
                    '<p class="small soft">No training history: the run '
                    "folder has no metrics.jsonl.</p>"
                )
            else:
                body = (
                    '<div class="pair">'
                    f"{curves.loss_chart(histories, HALF)}"
                    f"{curves.score_chart(histories, HALF)}</div>"
                )
                best = curves.best_of(histories)
                head += f'<div class="small soft">{best}</div>'
            cards.append(f'<div class="card">{head}{body}</div>')
    return section(
        "Training",
        f'<div class="grid wide">{"".join(cards)}</div>',
        "Loss and validation scores over epochs. The ring is the checkpoint "
        "that was kept; an upright line is a new stage.",
    )
