"""What the images of a data folder are like, as parts of a page."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from core import class_colours
from input_pipeline import inspection
from input_pipeline.decoding import BadImage
from input_pipeline.findings import Finding
from input_pipeline.inspection import compares_identities
from input_pipeline.sources.base import Examples, Source
from input_pipeline.transforms import geometry
from input_pipeline.transforms.views import WholeTransform
from reports.charts import Line, histogram, line_chart
from reports.page import Section, template
from reports.thumbnails import Thumbnail, thumbnail

_TEMPLATE = "data.html"
_SIDE = 160
# Pictures of each class, and classes that have them.
_PER_CLASS, _CLASSES, _IDENTITIES = 6, 40, 12
_OUTLIERS = 6
_SPLITS = {"train": "train", "val": "validate", "test": "to predict"}


@dataclasses.dataclass(frozen=True)
class Overview:
    """What is known of a data folder once each image was decoded.

    Attributes:
      source: the data.
      folds: int [N], of the labelled rows.
      images: from `inspection.inspect`.
      findings: from `audit.findings`.
    """

    source: Source
    folds: np.ndarray
    images: Sequence[inspection.Inspected]
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


def samples_section(overview: Overview) -> Section:
    """Returns some images of each class."""
    source = overview.source
    rng = np.random.default_rng(0)

    def holding(label: int) -> np.ndarray:
        """Rows of the images that hold a class."""
        if source.mask_pixels is not None:
            return np.flatnonzero(source.mask_pixels[:, label] > 0)
        if not source.classes:
            return np.arange(len(source.labelled))
        return np.flatnonzero(source.labelled.labels == label)

    pairs = compares_identities(source)
    most = _IDENTITIES if pairs else _CLASSES
    groups = []
    for label, name in enumerate((source.classes or ("images",))[:most]):
        rows = rng.permutation(holding(label))
        found = []
        for row in rows.tolist():
            if len(found) == _PER_CLASS:
                break
            if (shown := picture(overview, row)) is not None:
                found.append((str(source.labelled.ids[row]), shown))
        groups.append({"name": name, "pictures": found})
    note = f"Up to {_PER_CLASS} of each class, drawn at random."
    if pairs:
        note = f"Up to {_PER_CLASS} of each identity, drawn at random."
    if len(source.classes) > most:
        what = "identities" if pairs else "classes"
        note += f" The first {most} {what} alone."
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


def sizes_section(overview: Overview) -> Section:
    """Returns how large the images are, and how wide for their height."""
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


def colours_section(overview: Overview) -> Section:
    """Returns means and deviations of the channels, and the brightness."""
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


def outlier_sections(overview: Overview) -> Iterator[Section]:
    """Yields the darkest, brightest and least sharp images."""
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
            seen = picture(overview, index)
            if seen is None:
                continue
            shown.append(
                {
                    "id": overview.images[index].id,
                    "picture": seen,
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


def picture(overview: Overview, index: int | None) -> Thumbnail | None:
    """Returns `pixels` as a part of a page; None where there are none."""
    if index is None:
        return None
    found = pixels(overview, index)
    return None if found is None else thumbnail(found)


def pixels(overview: Overview, index: int) -> np.ndarray | None:
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
