"""The report of several segmentations together: scores, weights, masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reports.page import Section, template, write_page
from reports.segmentation import ReadExamples, segmentation_sections
from run_folder import layout


def mask_ensemble_report(
    workdir: Path,
    results: Mapping[str, Any],
    examples: ReadExamples | None = None,
) -> Path:
    """Writes the report of a mean of segmentations.

    Args:
      workdir: its folder, with `masks/val.npz`.
      results: the content of scores.json.
      examples: reads images with true and predicted masks; None shows none.

    Returns:
      The path of the html file.
    """
    rows = [
        {
            "name": name,
            "scores": scores,
            "weight": results["weights"].get(name),
            "folds": [
                fold[name] for fold in results["nested_weights"] if name in fold
            ],
        }
        for name, scores in results["scores"].items()
    ]
    return write_page(
        workdir / layout.REPORT,
        "Masks of several models",
        f"{len(results['runs'])} models, one mask per image: the mean of their "
        f"probabilities. Scores are of {results['images']:,} validation "
        "images, each predicted with weights that were found without it.",
        [
            Section(
                "Models",
                template("segmentation.html").members(rows),
                "Weights for new images were found on all validation images; "
                "beside them, the least and the largest of those that the "
                "scores are of.",
            ),
            *segmentation_sections(workdir, examples),
        ],
    )
