"""Charts as SVG text, in the colours of the page (`reports.page`)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

# Coordinates of a chart, (width, height). It is scaled to the width it is
# given, so a chart for half a card must be drawn smaller for the same text.
WHOLE = (420, 230)
HALF = (225, 160)
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 8, 10, 24
# More points than pixels only make the page heavy.
_POINTS = 240


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
      name: in the key.
      x, y: float [n], in drawing order; not finite values are left out.
      colour: a CSS colour, of the page's variables.
      dashed: whether a line below it shall show through.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: str = "var(--accent)"
    dashed: bool = False


def line_chart(
    lines: Sequence[Line],
    label: str,
    *,
    size: tuple[int, int] = WHOLE,
    verticals: Sequence[float] = (),
    marks: Sequence[tuple[float, float]] = (),
    from_zero: bool = True,
    x_ticks: Sequence[tuple[float, str]] = (),
    y_ticks: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Lines over a common x axis.

    Args:
      lines: drawn in order.
      label: what the chart shows, for screen readers.
      size: `WHOLE` or `HALF`.
      verticals: x of faint rules, where a new stage begins.
      marks: points to ring, the best ones.
      from_zero: whether the x axis begins at 0.
      x_ticks: places on the x axis and what to write there, ascending; the
        axis goes from the first to the last. Round numbers if empty.
      y_ticks: the same of the y axis.
    """
    width, height = size
    lines = [_finite(line) for line in lines]
    lines = [line for line in lines if len(line.x)]
    if not lines:
        return Markup('<p class="small soft">Nothing was recorded.</p>')
    x = np.concatenate([line.x for line in lines])
    y = np.concatenate([line.y for line in lines])
    x_low, x_high = float(x.min()), float(x.max())
    if from_zero:
        x_low = min(x_low, 0.0)
    x_high = x_high if x_high > x_low else x_low + 1
    if x_ticks:
        x_low, x_high = x_ticks[0][0], x_ticks[-1][0]
    else:
        places = nice_ticks(x_low, x_high, 5 if size == WHOLE else 3)
        x_ticks = [(p, _short(p)) for p in places if x_low <= p <= x_high]
    if not y_ticks:
        places = nice_ticks(float(y.min()), float(y.max()), 4)
        tiny = max(abs(place) for place in places) < 1e-2
        y_ticks = [(place, _short(place, tiny)) for place in places]
    low, high = y_ticks[0][0], y_ticks[-1][0]

    def across(value: float) -> float:
        share = (value - x_low) / (x_high - x_low)
        return _LEFT + share * (width - _LEFT - _RIGHT)

    def down(value: float) -> float:
        share = (value - low) / (high - low)
        return height - _BOTTOM - share * (height - _TOP - _BOTTOM)

    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label)}">'
    ]
    for tick, text in y_ticks:
        parts.append(
            f'<path d="M{_LEFT} {down(tick):.1f}H{width - _RIGHT}" '
            'stroke="var(--grid)"/>'
            f'<text x="{_LEFT - 7}" y="{down(tick) + 4:.1f}" '
            f'text-anchor="end">{escape(text)}</text>'
        )
    for value in verticals:
        parts.append(
            f'<path d="M{across(value):.1f} {_TOP}V{height - _BOTTOM}" '
            'stroke="var(--faint)" stroke-dasharray="2 3" opacity=".7"/>'
        )
    for tick, text in x_ticks:
        parts.append(
            f'<text x="{across(tick):.1f}" y="{height - 7}" '
            f'text-anchor="middle">{escape(text)}</text>'
        )
    for line in lines:
        points = " ".join(
            f"{across(a):.1f},{down(b):.1f}"
            for a, b in zip(line.x, line.y, strict=True)
        )
        if len(line.x) == 1:
            parts.append(
                f'<circle cx="{across(line.x[0]):.1f}" '
                f'cy="{down(line.y[0]):.1f}" r="2.5" fill="{line.colour}"/>'
            )
        parts.append(
            f'<polyline points="{points}" fill="none" '
            f'stroke="{line.colour}" stroke-width="1.8" '
            + ('stroke-dasharray="4 4" ' if line.dashed else "")
            + 'stroke-linejoin="round" stroke-linecap="round"/>'
        )
    for mark in marks:
        parts.append(
            f'<circle cx="{across(mark[0]):.1f}" cy="{down(mark[1]):.1f}" '
            'r="4" fill="var(--card)" stroke="var(--accent)" '
            f'stroke-width="2"><title>best: {mark[1]:.4f} at epoch '
            f"{_short(mark[0])}</title></circle>"
        )
    parts.append("</svg>")
    return Markup("".join(parts))


def histogram(values: np.ndarray, label: str, bins: int = 24) -> Markup:
    """Bars that count values, between the least and the largest.

    Args:
      values: float [N], finite.
      label: what they are, for screen readers.
      bins: of equal width.
    """
    counts, edges = np.histogram(values, bins)
    width, height = WHOLE
    ticks = nice_ticks(0, float(counts.max()), 4)

    def across(value: float) -> float:
        share = (value - edges[0]) / (edges[-1] - edges[0])
        return _LEFT + share * (width - _LEFT - _RIGHT)

    def down(value: float) -> float:
        return height - _BOTTOM - value / ticks[-1] * (height - _TOP - _BOTTOM)

    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="'
        f"{escape(label)}: {len(values):,} values from {edges[0]:.4g} to "
        f'{edges[-1]:.4g}">'
    ]
    for tick in ticks:
        parts.append(
            f'<path d="M{_LEFT} {down(tick):.1f}H{width - _RIGHT}" '
            'stroke="var(--grid)"/>'
            f'<text x="{_LEFT - 7}" y="{down(tick) + 4:.1f}" '
            f'text-anchor="end">{_short(tick)}</text>'
        )
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        if not count:
            continue
        parts.append(
            f'<rect x="{across(left):.1f}" y="{down(count):.1f}" '
            f'width="{across(right) - across(left) - 1:.1f}" '
            f'height="{down(0) - down(count):.1f}" fill="var(--accent)">'
            f"<title>{left:.4g} to {right:.4g}: {count:,}</title></rect>"
        )
    for tick in nice_ticks(float(edges[0]), float(edges[-1]), 5):
        if edges[0] <= tick <= edges[-1]:
            parts.append(
                f'<text x="{across(tick):.1f}" y="{height - 7}" '
                f'text-anchor="middle">{_short(tick)}</text>'
            )
    return Markup("".join([*parts, "</svg>"]))


@dataclass(frozen=True)
class Points:
    """The points of one name in a scatter plot.

    Attributes:
      name: in the key.
      xy: float [n, 2].
      colour: a CSS colour.
      crosses: whether to draw crosses, not dots.
      opacity: of each point.
    """

    name: str
    xy: np.ndarray
    colour: str = "var(--accent)"
    crosses: bool = False
    opacity: float = 0.85


def scatter(groups: Sequence[Points], label: str) -> Markup:
    """Points on a plane without axes: both directions are of one scale.

    Args:
      groups: drawn in order.
      label: what the plot shows, for screen readers.
    """
    xy = np.concatenate([group.xy for group in groups]).astype(np.float64)
    low, high = xy.min(axis=0), xy.max(axis=0)
    width, edge = 420.0, 8.0
    scale = (width - 2 * edge) / max(float((high - low).max()), 1e-9)
    height = float(high[1] - low[1]) * scale + 2 * edge
    parts = [
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{escape(label)}" style="max-width:600px;margin:auto">'
    ]
    for group in groups:
        parts.append(f'<g opacity="{group.opacity}">')
        for x, y in (group.xy - low) * scale + edge:
            across, down = f"{x:.1f}", f"{height - y:.1f}"
            parts.append(
                f'<path d="M{across} {down}m-2.5 -2.5l5 5m0 -5l-5 5" '
                f'stroke="{group.colour}" stroke-width="1.4"/>'
                if group.crosses
                else f'<circle cx="{across}" cy="{down}" r="2.6" '
                f'fill="{group.colour}"/>'
            )
        parts.append("</g>")
    parts.append("</svg>")
    return Markup("".join(parts))


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from below `low` to above `high`."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(
        power * unit for unit in (1, 2, 2.5, 5, 10) if power * unit >= rough
    )
    first, last = math.floor(low / step), math.ceil(high / step)
    return [index * step for index in range(first, last + 1)]


def _short(value: float, tiny: bool = False) -> str:
    """The number in few characters, as 2e-4 if `tiny` or below 1e-3."""
    if not value or not (tiny or abs(value) < 1e-3):
        return f"{value:.4g}"
    digits, power = f"{value:.1e}".split("e")
    return f"{float(digits):g}e{int(power)}"


def _finite(line: Line) -> Line:
    """The finite points, thinned to means over at most `_POINTS` stretches."""
    x = np.asarray(line.x, np.float64)
    y = np.asarray(line.y, np.float64)
    fine = np.isfinite(x) & np.isfinite(y)
    x, y = x[fine], y[fine]
    if len(x) > _POINTS:
        parts = np.array_split(np.arange(len(x)), _POINTS)
        x = np.array([x[part].mean() for part in parts])
        y = np.array([y[part].mean() for part in parts])
    return dataclasses.replace(line, x=x, y=y)


def interval(
    value: float,
    low: float,
    high: float,
    start: float,
    end: float,
    *,
    rule: float | None = None,
) -> Markup:
    """A point with its interval on a scale from `start` to `end`.

    An upright line marks `rule`, such as no difference.
    """
    width = 240
    span = max(end - start, 1e-9)

    def across(x: float) -> float:
        return 6 + (x - start) / span * (width - 12)

    return Markup(
        f'<svg viewBox="0 0 {width} 22" role="img" aria-label="{value:.4f}, '
        f'between {low:.4f} and {high:.4f}">'
        f'<path d="M0 11H{width}" stroke="var(--grid)"/>'
        + (
            ""
            if rule is None
            else f'<path d="M{across(rule):.1f} 1V21" stroke="var(--faint)"/>'
        )
        + f'<path d="M{across(low):.1f} 11H{across(high):.1f}" '
        'stroke="var(--accent)" stroke-width="5" stroke-linecap="round" '
        'opacity=".32"/>'
        f'<circle cx="{across(value):.1f}" cy="11" r="4" '
        'fill="var(--accent)"/></svg>'
    )


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
