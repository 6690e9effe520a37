"""A page on a data folder before anything is trained on it."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core import class_colours
from input_pipeline import audit
from input_pipeline.decoding import BadImage
from input_pipeline.findings import DOUBTS, LOSSES, Finding
from input_pipeline.sources.base import Examples, Source
from input_pipeline.transforms import geometry
from input_pipeline.transforms.views import WholeTransform
from reports.charts import Line, histogram, line_chart
from reports.classification import mistakes_section, read_predictions
from reports.data_findings import REMEDIES
from reports.page import Figure, Section, template, write_page
from reports.thumbnails import Thumbnail, thumbnail

_TEMPLATE = "data.html"
_SIDE = 160
# Pictures of each class, and classes that have them.
_PER_CLASS, _CLASSES = 6, 40
_OUTLIERS = 6
_FINDINGS = 6
# Probability from which on a prediction contradicts a label.
_SURE = 0.7
_SPLITS = {"train": "train", "val": "validate", "test": "to predict"}


@dataclasses.dataclass(frozen=True)
class Overview:
    """What is known of a data folder once each image was decoded.

    Attributes:
      source: the data.
      folds: int [N], of the labelled rows.
      images: from `audit.inspect`.
      findings: from `audit.findings`.
    """

    source: Source
    folds: np.ndarray
    images: Sequence[audit.Inspected]
    findings: Sequence[Finding]

    @property
    def readable(self) -> list[int]:
        """Indices of the images that could be decoded."""
        return [
            i for i, one in enumerate(self.images) if not one.decoded.reason
        ]

    def examples(self, index: int) -> tuple[Examples, int]:
        """Returns the examples that an image is of, and its row there."""
        count = len(self.source.labelled)
        if index < count:
            return self.source.labelled, index
        return self.source.test, index - count


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
        _samples(overview),
        _sizes(overview),
        _channels(overview),
        *_outliers(overview),
    ]
    test = 0 if source.test is None else len(source.test)
    problems = len({finding.problem for finding in overview.findings})
    figures = [
        Figure("labelled images", f"{len(source.labelled):,}", source.name),
        Figure("classes", f"{len(source.classes):,}"),
        Figure("to predict", f"{test:,}"),
        Figure(
            "findings",
            f"{len(overview.findings):,}",
            f"of {problems} kinds" if problems else "nothing is odd",
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
                    "picture": _picture(overview, number),
                }
            )
        rows.append(
            {
                "problem": problem,
                "count": len(found),
                "meaning": meaning,
                "remedy": REMEDIES[problem],
                "loses": problem in LOSSES,
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
    names = _fold_names(overview)
    return Section("Classes", template(_TEMPLATE).classes(rows, names), note)


def _fold_names(overview: Overview) -> list[str]:
    if overview.source.given_folds is not None:
        return ["validate", "train"]
    return [f"fold {fold}" for fold in range(int(overview.folds.max()) + 1)]


def _mask_classes(overview: Overview) -> Section:
    source, folds = overview.source, overview.folds
    pixels, names = source.mask_pixels, _fold_names(overview)
    share = pixels.sum(axis=0) / max(pixels.sum(), 1)
    rows = []
    for label, name in enumerate(source.classes):
        holding = pixels[:, label] > 0
        by_fold = [
            pixels[folds == fold][:, label].sum()
            / max(pixels[folds == fold].sum(), 1)
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


def _samples(overview: Overview) -> Section:
    source = overview.source
    rng = np.random.default_rng(0)
    if source.mask_pixels is None:
        holds = source.labelled.labels[:, None] == np.arange(
            max(len(source.classes), 1)
        )
        if not source.classes:
            holds = np.ones((len(source.labelled), 1), bool)
    else:
        holds = source.mask_pixels > 0
    groups = []
    for label, name in enumerate((source.classes or ("images",))[:_CLASSES]):
        rows = rng.permutation(np.flatnonzero(holds[:, label]))
        found = []
        for row in rows.tolist():
            if len(found) == _PER_CLASS:
                break
            if (picture := _picture(overview, row)) is not None:
                found.append((str(source.labelled.ids[row]), picture))
        groups.append({"name": name, "pictures": found})
    note = f"Up to {_PER_CLASS} of each class, drawn at random."
    if len(source.classes) > _CLASSES:
        note += f" The first {_CLASSES} classes alone."
    colours = []
    if source.mask_pixels is not None:
        palette = class_colours.palette(len(source.classes)).tolist()
        colours = [
            (name, "rgb({},{},{})".format(*colour))
            for name, colour in zip(source.classes, palette, strict=True)
        ]
        note += " The mask is drawn over the image; ignored pixels are striped."
    return Section(
        "Samples", template(_TEMPLATE).samples(groups, colours), note
    )


def _sizes(overview: Overview) -> Section:
    decoded = [overview.images[i].decoded for i in overview.readable]
    if not decoded:
        return Section("Sizes", note="No image can be read.")
    width = np.array([one.width for one in decoded], float)
    height = np.array([one.height for one in decoded], float)
    side, ratio = np.sqrt(width * height), width / height
    kinds, counts = np.unique(
        np.stack([width, height], 1), axis=0, return_counts=True
    )
    most = kinds[counts.argmax()]
    charts = [
        ("Side of a square of the same area, pixels", histogram(side, "sides")),
        ("Width over height", histogram(ratio, "aspect ratios")),
    ]
    note = (
        f"{len(kinds):,} different sizes; the "
        f"most frequent is {most[0]:.0f}x{most[1]:.0f} "
        f"({counts.max() / len(decoded):.0%} of the images)."
    )
    if len(kinds) == 1:
        note = f"All images are {most[0]:.0f}x{most[1]:.0f}."
        return Section("Sizes", note=note)
    return Section("Sizes", template(_TEMPLATE).charts(charts), note)


def _channels(overview: Overview) -> Section:
    rows, lines = [], []
    colours = ("var(--accent)", "var(--second)", "var(--wrong)")
    for (split, title), colour in zip(_SPLITS.items(), colours, strict=True):
        decoded = [
            overview.images[i].decoded
            for i in overview.readable
            if overview.images[i].split == split
        ]
        if not decoded:
            continue
        # Each pixel counts the same, so a large image counts for more.
        area = np.array([one.width * one.height for one in decoded], float)
        area /= area.sum()
        mean = area @ np.stack([one.means for one in decoded])
        square = area @ np.stack([one.squares for one in decoded])
        std = np.sqrt(np.maximum(square - mean**2, 0))
        rows.append(
            {"title": title, "mean": mean.tolist(), "std": std.tolist()}
        )
        light = np.array([one.brightness for one in decoded])
        counts, edges = np.histogram(light, 25, (0, 1))
        middle = (edges[1:] + edges[:-1]) / 2
        dashed = split == "test"
        lines.append(
            Line(title, middle, 100 * counts / len(light), colour, dashed)
        )
    if not rows:
        return Section("Colours", note="No image can be read.")
    chart = line_chart(lines, "brightness of the images, per cent of them")
    note = "Over 0 to 1, of all pixels."
    first, last = rows[0], rows[-1]
    apart = np.abs(np.subtract(first["mean"], last["mean"])).max()
    if apart > 0.1:
        note += (
            f" Images to {first['title']} and {last['title']} differ by up to "
            f"{apart:.2f} in a channel: see that both come from one source, "
            "and augment brightness and contrast."
        )
    return Section(
        "Colours", template(_TEMPLATE).channels(rows, chart, lines), note
    )


def _outliers(overview: Overview) -> Iterator[Section]:
    readable = overview.readable
    if len(readable) < 2:
        return
    light = np.array([overview.images[i].decoded.brightness for i in readable])
    sharp = np.array([overview.images[i].decoded.sharpness for i in readable])
    groups = []
    for title, values, order in (
        ("Darkest", light, np.argsort(light, kind="stable")),
        ("Brightest", light, np.argsort(-light, kind="stable")),
        ("Least sharp", sharp, np.argsort(sharp, kind="stable")),
    ):
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        # Tukey's fences: what lies outside of them is an outlier.
        fence = 1.5 * (high - low)
        outside = (values < low - fence) | (values > high + fence)
        shown = []
        for place in order[:_OUTLIERS].tolist():
            index = readable[place]
            picture = _picture(overview, index)
            if picture is None:
                continue
            shown.append(
                {
                    "id": overview.images[index].id,
                    "picture": picture,
                    "value": f"{values[place]:.3g}",
                    "outside": bool(outside[place]),
                }
            )
        groups.append(
            {"title": title, "median": f"{middle:.3g}", "shown": shown}
        )
    yield Section(
        "Brightness and sharpness",
        template(_TEMPLATE).outliers(groups),
        "Mean brightness from 0 to 1; sharpness is the deviation of the "
        "Laplacian at 256 pixels. Marked is what lies far from the middle "
        "half of the data: look whether it shows anything.",
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
                and (found := _pixels(overview, rows[name])) is not None
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


def _picture(overview: Overview, index: int | None) -> Thumbnail | None:
    if index is None:
        return None
    pixels = _pixels(overview, index)
    return None if pixels is None else thumbnail(pixels)


def _pixels(overview: Overview, index: int) -> np.ndarray | None:
    """An image as a square, with its mask over it; None if it has none."""
    examples, row = overview.examples(index)
    try:
        example: dict[str, Any] = examples.read(row)
        whole = WholeTransform(_SIDE)(example)
    except BadImage:
        return None
    image = whole["image"][0]
    if "mask" not in example:
        return image
    corners = (0, 0, *whole["size"].tolist())
    mask = geometry.resized_mask(example["mask"], corners[2:], _SIDE, corners)
    count = len(overview.source.classes)
    return class_colours.overlay(image, mask, count)
