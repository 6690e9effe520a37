"""What an audit reports about masks: shares of the classes, empty ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from input_pipeline.findings import Finding
from input_pipeline.sources.base import Source


def mask_findings(source: Source, splits: np.ndarray) -> Iterator[Finding]:
    """Yields what is odd about masks.

    Args:
      source: with `mask_pixels`.
      splits: str `[N]`, the split of each labelled row.
    """
    present = source.mask_pixels > 0
    learned = present[splits == "train"].any(axis=0)
    validated = present[splits == "val"].any(axis=0) | ("val" not in splits)
    for label, name in enumerate(source.classes):
        if not learned[label]:
            detail = f"class '{name}' is in no mask"
            if present[:, label].any():
                detail += " to train on"
            yield Finding("train", "", "", "class in no mask", detail)
        elif not validated[label]:
            detail = f"class '{name}' is in no mask to validate on"
            yield Finding("val", "", "", "class not validated", detail)
    for row in np.flatnonzero(present.sum(axis=1) < 2):
        detail, problem = "all pixels are ignored", "empty mask"
        if present[row].any():
            label = present[row].argmax()
            detail = f"all pixels are '{source.classes[label]}'"
            problem = "one-class mask" if label else "empty mask"
        yield Finding(
            str(splits[row]),
            str(source.labelled.ids[row]),
            source.labelled.path(row),
            problem,
            detail,
        )


def share_lines(source: Source, splits: np.ndarray) -> list[str]:
    """Returns a table of the classes' shares of the pixels, line by line.

    Args:
      source: with `mask_pixels` and `mask_sizes`.
      splits: str `[N]`, the split of each labelled row.
    """
    names = [name for name in ("train", "val") if name in splits]
    rows = [(*source.classes, "ignored")]
    area = source.mask_sizes.astype(np.int64).prod(axis=1)
    counts = np.c_[source.mask_pixels, area - source.mask_pixels.sum(axis=1)]
    for name in names:
        chosen = counts[splits == name]
        shares = chosen.sum(axis=0) / max(chosen.sum(), 1)
        rows.append([f"{share:.2%}" for share in shares])
        rows.append([f"{count:,}" for count in (chosen > 0).sum(axis=0)])
    heads = ["pixels of"]
    for name in names:
        heads += [name, "images"]
    table = [heads, *zip(*rows, strict=True)]
    if not counts[:, -1].any():
        table.pop()
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  "
        + "  ".join(
            [row[0].ljust(widths[0])]
            + [
                text.rjust(width)
                for text, width in zip(row[1:], widths[1:], strict=True)
            ]
        )
        for row in table
    ]
