"""The report of a stack: scores, weights, training curves and mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core import paths
from reports import curves
from reports.charts import HALF, interval
from reports.classification import (
    Predictions,
    confusion_sections,
    mistakes_section,
)
from reports.page import Figure, Section, template, write_page
from reports.thumbnails import Pictures
from run_folder import layout
from run_folder.history import read_histories

_TEMPLATE = "ensemble.html"
_TITLES = {
    "soft_vote": "soft vote",
    "greedy_vote": "greedy vote",
    "logistic": "logistic regression",
    "catboost": "CatBoost",
    "lightgbm": "LightGBM",
    "blend": "final blend",
}


def title(name: str) -> str:
    """Returns what people call a model or meta-learner of the stack."""
    return _TITLES.get(name, name)


def ensemble_report(
    path: str | Path,
    results: Mapping[str, Any],
    predictions: Sequence[Predictions],
    pictures: Pictures | None = None,
) -> Path:
    """Writes the report of a stack.

    Args:
      path: of the html file.
      results: the content of scores.json.
      predictions: of the blend, one per set of labelled rows; the last one is
        looked at class by class.
      pictures: reads the images that went wrong; see `Pictures`.

    Returns:
      `path`.
    """
    classes = results["classes"]
    families = results["families"]
    count = f"{len(families)} model{'s' if len(families) != 1 else ''}"
    runs = sum(len(family["runs"]) for family in families)
    if runs > len(families):
        count += f" (of {runs} runs: those of one model are averaged)"
    return write_page(
        Path(path),
        "Ensemble report",
        f"{count}, one answer, over {len(classes)} classes. Every score is "
        "out of fold: temperatures, weights, boosters and blend were fitted "
        "without the rows they are scored on.",
        [
            _score_section(results),
            _weights_section(results["final"]),
            *_member_sections(results),
            _training_section(families),
            *confusion_sections(predictions[-1], classes),
            *(
                mistakes_section(part, classes, pictures)
                for part in predictions
            ),
        ],
        _figures(results),
    )


def _figures(results: Mapping[str, Any]) -> list[Figure]:
    blend = results["scores"]["blend"]
    low, high = blend["macro_f1_interval"]
    models = [results["scores"][f["name"]] for f in results["families"]]
    best = max(model["macro_f1"] for model in models)
    figures = [
        Figure(
            "macro-F1, out of fold",
            f"{blend['macro_f1']:.4f}",
            f"95 % interval {low:.3f} to {high:.3f}",
        ),
        Figure(
            "accuracy, out of fold",
            f"{blend['accuracy']:.4f}",
            f"{results['rows']:,} validation rows",
        ),
    ]
    if results["test_scores"]:
        figures.append(
            Figure(
                "macro-F1, test",
                f"{results['test_scores']['blend']['macro_f1']:.4f}",
                f"{results['test_rows']:,} rows nothing has seen",
            )
        )
    figures.append(
        Figure(
            "over the best model",
            f"{blend['macro_f1'] - best:+.4f}",
            f"which alone has {best:.4f}",
        )
    )
    return figures


def _score_section(results: Mapping[str, Any]) -> Section:
    scores, test = results["scores"], results["test_scores"]
    intervals = [entry["macro_f1_interval"] for entry in scores.values()]
    start = min(low for low, _ in intervals)
    end = max(high for _, high in intervals)
    best = max(entry["macro_f1"] for entry in scores.values())
    rows = []
    for index, (name, entry) in enumerate(scores.items()):
        low, high = entry["macro_f1_interval"]
        rows.append(
            {
                "title": title(name),
                "scores": entry,
                "test": test[name] if test else None,
                "interval": f"{low:.4f} to {high:.4f}",
                "plot": interval(entry["macro_f1"], low, high, start, end),
                "is_best": entry["macro_f1"] == best,
                "is_blend": name == "blend",
                "rule_above": index
                in (len(results["families"]), len(scores) - 1),
            }
        )
    chance = results["most_common_class"]
    return Section(
        "Scores",
        template(_TEMPLATE).scores(rows, bool(test)),
        "Always answering the most common class would score "
        f"{chance['macro_f1']:.3f} (accuracy {chance['accuracy']:.3f}). "
        "Log-loss and calibration error (ECE): lower is better.",
    )


def _weights_section(final: Mapping[str, Any]) -> Section:
    tables = {
        "Final blend": final["blend_weights"],
        "Soft vote": final["soft_vote_weights"],
        "Greedy vote": final["greedy_vote_weights"],
    }
    for name, shares in final.get("importances", {}).items():
        if shares:
            tables[f"{title(name)} looks at"] = shares
    return Section(
        "Weights",
        template(_TEMPLATE).weights(
            [
                (heading, sorted(_titled(weights), key=lambda row: -row[1]))
                for heading, weights in tables.items()
            ]
        ),
        "Over temperature-calibrated probabilities, after the last fit on "
        "all validation rows. What a booster looks at is each model's share "
        "in the splits of its trees.",
    )


def _member_sections(results: Mapping[str, Any]) -> list[Section]:
    """What each model adds, shared mistakes, and gains class by class."""
    members = results["members"]
    names = [family["name"] for family in results["families"]]
    if len(names) < 2:
        return []
    scores = results["scores"]
    rows = []
    for number, name in enumerate(names):
        low, high = members["gain_interval"][number]
        gain = members["macro_f1"] - members["without"][number]
        verdict = "helps" if low > 0 else "hurts" if high < 0 else "unclear"
        rows.append(
            {
                "name": name,
                "alone": scores[name]["macro_f1"],
                "without": members["without"][number],
                "gain": gain,
                "interval": f"{low:+.4f} to {high:+.4f}",
                "verdict": verdict,
                "correlations": members["error_correlation"][number],
            }
        )
    rows.sort(key=lambda row: -row["gain"])
    best = max(names, key=lambda name: scores[name]["macro_f1"])
    macros = template(_TEMPLATE)
    classes = [
        {"name": name, "best": one, "blend": both, "gain": both - one}
        for name, one, both in zip(
            results["classes"],
            scores[best]["f1_per_class"],
            scores["blend"]["f1_per_class"],
            strict=True,
        )
        if one is not None and both is not None
    ]
    classes.sort(key=lambda row: row["gain"])
    return [
        Section(
            "What each model adds",
            macros.members(rows),
            "Macro-F1 of the plain mean of all models is "
            f"{members['macro_f1']:.4f}; beside it that of the mean without "
            "the model, and the difference with its 95 % interval over the "
            "same drawn rows. Where the interval holds 0, these rows do not "
            "tell whether the model helps.",
        ),
        Section(
            "Shared mistakes",
            macros.correlation(
                [row["name"] for row in rows],
                _ordered(rows, names),
            ),
            "Correlation between the errors of two models: 1 errs on the same "
            "rows, 0 has nothing in common. Models that err elsewhere are "
            "worth more together.",
        ),
        Section(
            "Classes, blend over the best model",
            macros.class_gains(classes),
            f"F1 of the blend less that of {best}, the worst first.",
        ),
    ]


def _ordered(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> list[list[float | None]]:
    """The correlations with their columns in the order of the rows."""
    columns = [names.index(row["name"]) for row in rows]
    return [[row["correlations"][c] for c in columns] for row in rows]


def _titled(weights: Mapping[str, float]) -> list[tuple[str, float]]:
    return [(title(name), weight) for name, weight in weights.items()]


def _training_section(families: Sequence[Mapping[str, Any]]) -> Section:
    runs = []
    for family in families:
        alone = len(family["runs"]) == 1
        for run in family["runs"]:
            named = alone and Path(run).name == family["name"]
            folder = paths.make_path(run)
            histories = read_histories(folder)
            config = layout.read_config(folder)
            metric = curves.ranking_metric(histories, config)
            charts = [
                *curves.loss_chart(histories, metric, HALF),
                *curves.score_charts(histories, metric, HALF),
            ]
            runs.append(
                {
                    "family": family["name"],
                    "path": "" if named else run,
                    "best": curves.best_of(histories, metric),
                    "charts": charts,
                }
            )
    return Section(
        "Training",
        template(_TEMPLATE).training(runs),
        "Loss and validation scores over epochs. The ring is the checkpoint "
        "that was kept; an upright line is a new stage.",
    )
