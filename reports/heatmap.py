"""A confusion matrix as SVG text, in the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape


def confusion_heatmap(
    confusion: np.ndarray, classes: Sequence[str], shares: bool = False
) -> Markup:
    """Rows: true classes; columns: predicted classes; shade: share of the row.

    Right and wrong predictions have different colours, so that the diagonal
    does not drown the rest.

    Args:
      confusion: int `[C, C]`.
      classes: C names.
      shares: whether per cent of the row are written, not counts, which for
        pixels are too long.
    """
    count = len(classes)
    cell = 30 if count <= 20 else max(8, 600 // count)
    numbers, names = cell >= 24, cell >= 11
    longest = max(len(name) for name in classes) if names else 0
    edge = 26 + min(longest, 14) * 6.2
    # Short names stand upright above their columns.
    turn = "" if longest <= 3 else " rotate(-90)"
    anchor = "middle" if longest <= 3 else "start"
    shift = -0.7 if longest <= 3 else 4
    size = edge + count * cell + 4
    parts = [
        f'<svg viewBox="0 0 {size:.0f} {size:.0f}" role="img" '
        'aria-label="confusion matrix" '
        f'style="max-width:{min(size * 1.5, 640):.0f}px;min-width:'
        f'{min(size * 0.72, 520):.0f}px">'
        f'<text x="{edge}" y="12">predicted class</text>'
        f'<text transform="translate(12 {edge + 2}) rotate(-90)" '
        'text-anchor="end">true class</text>'
    ]
    totals = np.maximum(confusion.sum(axis=1), 1)
    for i in range(count):
        y = edge + i * cell
        if names:
            name = _clipped(classes[i])
            parts.append(
                f'<text x="{edge - 6}" y="{y + cell / 2 + 4:.1f}" '
                f'text-anchor="end">{name}</text>'
                f'<text transform="translate({y + cell / 2 + shift:.1f} '
                f'{edge - 6}){turn}" text-anchor="{anchor}">{name}</text>'
            )
        for j in range(count):
            number = int(confusion[i, j])
            x = edge + j * cell
            share = number / totals[i]
            # The square root lifts the rare mistakes out of the dark.
            shade = 0.08 + 0.82 * math.sqrt(share) if number else 0.0
            colour = "var(--accent)" if i == j else "var(--wrong)"
            fill = colour if number else "var(--track)"
            opacity = f"{shade:.2f}" if number else ".55"
            parts.append(
                f'<rect x="{x}" y="{y}" width="{cell - 1.5}" '
                f'height="{cell - 1.5}" rx="{min(4, cell / 6):.1f}" '
                f'fill="{fill}" fill-opacity="{opacity}"'
            )
            if not number:
                parts.append("/>")
                continue
            parts.append(
                f"><title>{escape(classes[i])} predicted as "
                f"{escape(classes[j])}: {number} of {int(totals[i])}"
                "</title></rect>"
            )
            if numbers:
                ink = "var(--card)" if shade > 0.55 else "var(--ink)"
                text = str(number)
                if shares:
                    text = f"{100 * share:.0f}" if share > 0.005 else "<1"
                parts.append(
                    f'<text x="{x + cell / 2 - 0.7:.1f}" '
                    f'y="{y + cell / 2 + 3.3:.1f}" text-anchor="middle" '
                    f'style="fill:{ink};font-size:{_fit(text)}px" '
                    f'pointer-events="none">{escape(text)}</text>'
                )
    parts.append("</svg>")
    return Markup("".join(parts))


def _fit(number: str) -> int:
    return {1: 11, 2: 11, 3: 10, 4: 8}.get(len(number), 7)


def _clipped(name: str) -> str:
    return escape(name if len(name) <= 14 else name[:13] + "…")
