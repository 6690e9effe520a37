"""A page on a data folder before anything is trained on it."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from input_pipeline.findings import DOUBTS, LOSSES, Finding
from input_pipeline.inspection import compares_identities
from reports.charts import histogram
from reports.classification import mistakes_section, read_predictions
from reports.data_findings import REMEDIES
from reports.data_images import (
    Overview,
    colours_section,
    outlier_sections,
    picture,
    pixels,
    samples_section,
    sizes_section,
)
from reports.page import Figure, Section, template, write_page

_TEMPLATE = "data.html"
_FINDINGS = 6
_MOST = 60  # classes in the table
# Probability from which on a prediction contradicts a label.
_SURE = 0.7


def data_report(
    path: Path, overview: Overview, predictions: Path | None = None
) -> Path:
    """Writes the page.

    Args:
      path: of the html file.
      overview: of the data.
      predictions: a run over all folds, or over one: the labels that its
        validation predictions contradict are shown; None shows none.

    Returns:
      `path`.

    Raises:
      UserError: the predictions are damaged.
    """
    source = overview.source
    sections = [_findings(overview), _classes(overview)]
    if predictions is not None:
        sections += _suspicious(overview, predictions)
    sections += [
        samples_section(overview),
        sizes_section(overview),
        colours_section(overview),
        *outlier_sections(overview),
    ]
    test = 0 if source.test is None else len(source.test)
    problems = len({finding.problem for finding in overview.findings})
    figures = [
        Figure("labelled images", f"{len(source.labelled):,}", source.name),
        Figure(
            "identities" if compares_identities(source) else "classes",
            f"{len(source.classes):,}",
        ),
        Figure("to predict", f"{test:,}"),
        Figure(
            "findings",
            f"{len(overview.findings):,}",
            f"of {problems} kind{'s' * (problems > 1)}"
            if problems
            else "nothing is odd",
        ),
    ]
    lead = "Each image was decoded once, as training does."
    return write_page(path, "Data overview", lead, sections, figures)


def _findings(overview: Overview) -> Section:
    by_problem: dict[str, list[Finding]] = defaultdict(list)
    for finding in overview.findings:
        by_problem[finding.problem].append(finding)
    index = {
        (image.split, image.id): number
        for number, image in enumerate(overview.images)
    }
    rows = []
    for problem, meaning in (LOSSES | DOUBTS).items():
        found = by_problem.get(problem, [])
        if not found:
            continue
        shown = []
        for finding in found[:_FINDINGS]:
            number = index.get((finding.split, finding.id))
            shown.append(
                {
                    "finding": finding,
                    "where": finding.id or finding.file,
                    "picture": picture(overview, number),
                    "other": picture(overview, index.get(finding.other)),
                }
            )
        rows.append(
            {
                "problem": problem,
                "count": len(found),
                "meaning": meaning,
                "remedy": REMEDIES[problem],
                "loses": problem in LOSSES,
                "couples": any(one["other"] for one in shown),
                "shown": shown,
            }
        )
    note = (
        "Every image can be read, and nothing else is odd."
        if not rows
        else "What would be lost comes first. All of them as a table: "
        "python -m input_pipeline audit."
    )
    return Section("Findings", template(_TEMPLATE).findings(rows), note)


def _classes(overview: Overview) -> Section:
    source, folds = overview.source, overview.folds
    if source.mask_pixels is not None:
        return _mask_classes(overview)
    if not source.classes:
        return Section("Classes", note="The data have no labels.")
    if compares_identities(source):
        return _identities(overview)
    labels = source.labelled.labels
    counts = np.zeros((len(source.classes), int(folds.max()) + 1), int)
    np.add.at(counts, (labels[labels >= 0], folds[labels >= 0]), 1)
    totals = counts.sum(axis=1)
    rows = [
        {
            "name": source.classes[label],
            "share": float(totals[label] / max(totals.max(), 1)),
            "total": int(totals[label]),
            "counts": counts[label].tolist(),
        }
        for label in np.argsort(-totals, kind="stable")
    ]
    largest, least = int(totals.max()), int(totals.min())
    note = f"The largest class has {largest:,} images, the smallest {least:,}. "
    if largest > 10 * max(least, 1):
        note += (
            "That is uneven: a macro-F1 counts both alike, so try "
            "--config.data.balance=0.5 and a loss with class weights."
        )
    else:
        note += "That is even enough to train without weights."
    if len(rows) > _MOST:
        rows = rows[: _MOST // 2] + rows[-_MOST // 2 :]
        note += f" Below, the {_MOST // 2} largest and the smallest."
    names = _fold_names(overview)
    return Section("Classes", template(_TEMPLATE).classes(rows, names), note)


def _identities(overview: Overview) -> Section:
    """How many pictures of how many identities are in each fold."""
    known, folds = overview.source.labelled, overview.folds
    forged = known.columns["forged"] != 0
    real = np.bincount(
        known.labels[~forged], minlength=len(overview.source.classes)
    )
    rows = [
        {
            "name": name,
            "identities": len(np.unique(known.labels[folds == fold])),
            "real": int((~forged & (folds == fold)).sum()),
            "forged": int((forged & (folds == fold)).sum()),
        }
        for fold, name in enumerate(_fold_names(overview))
    ]
    note = (
        f"{(real > 1).sum():,} of {len(real):,} identities have two real "
        "pictures or more, and so make pairs that match; "
        f"{forged.mean():.1%} of the pictures are forged. All pictures of an "
        "identity are in one fold."
    )
    chart = histogram(
        real, "real pictures of an identity", int(np.ptp(real)) + 1
    )
    body = template(_TEMPLATE).identities(rows, chart)
    return Section("Identities", body, note)


def _fold_names(overview: Overview) -> list[str]:
    if overview.source.given_folds is not None:
        return ["validate", "train"]
    return [f"fold {fold}" for fold in range(int(overview.folds.max()) + 1)]


def _mask_classes(overview: Overview) -> Section:
    source, folds = overview.source, overview.folds
    counts, names = source.mask_pixels, _fold_names(overview)
    share = counts.sum(axis=0) / max(counts.sum(), 1)
    rows = []
    for label, name in enumerate(source.classes):
        holding = counts[:, label] > 0
        by_fold = [
            counts[folds == fold][:, label].sum()
            / max(counts[folds == fold].sum(), 1)
            for fold in range(len(names))
        ]
        rows.append(
            {
                "name": name,
                "share": float(share[label]),
                "images": int(holding.sum()),
                "shares": [float(one) for one in by_fold],
            }
        )
    note = "Of the pixels that are not ignored, as a share of each fold."
    rare = [row["name"] for row in rows if 0 < row["share"] < 0.01]
    if rare:
        note += (
            f" Under one per cent: {', '.join(rare)}; a loss of regions "
            "(dice, or focal) keeps such classes from being drowned."
        )
    return Section(
        "Classes", template(_TEMPLATE).mask_classes(rows, names), note
    )


def _suspicious(overview: Overview, run: Path) -> list[Section]:
    """Labels that predictions of models which never saw them contradict."""
    predictions, classes = read_predictions(run)
    if predictions is None:
        return []
    rows = {name: row for row, name in enumerate(overview.source.labelled.ids)}

    def pictures(ids: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        for name in ids:
            if (
                name in rows
                and (found := pixels(overview, rows[name])) is not None
            ):
                yield name, found

    # Where the model only guesses, the label is no worse for it.
    sure = (predictions.confidence >= _SURE) & (predictions.true <= 1 - _SURE)
    sure &= predictions.predicted != predictions.labels
    chosen = dataclasses.replace(
        predictions,
        **{
            field.name: getattr(predictions, field.name)[sure]
            for field in dataclasses.fields(predictions)
            if field.name != "title"
        },
    )
    note = (
        f"Of {len(sure):,} labels that a model has predicted without having "
        f"been trained on them, {sure.sum():,} are contradicted with a "
        f"probability of {_SURE:.0%} and more."
    )
    if not sure.any():
        return [Section("Labels to look at", note=note)]
    section = mistakes_section(chosen, classes, pictures)
    note += (
        " The surest come first: true class → predicted class. Where the label "
        "is wrong, correct it; where the model is, leave it."
    )
    return [dataclasses.replace(section, title="Labels to look at", note=note)]
