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
    log: bool = False,
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
      log: whether the y axis is logarithmic; every y is then positive.
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
        ticks = _log_ticks if log else nice_ticks
        places = ticks(float(y.min()), float(y.max()), 4)
        tiny = max(abs(place) for place in places) < 1e-2
        y_ticks = [(place, _short(place, tiny)) for place in places]
    scale = math.log10 if log else float
    low, high = scale(y_ticks[0][0]), scale(y_ticks[-1][0])

    def across(value: float) -> float:
        share = (value - x_low) / (x_high - x_low)
        return _LEFT + share * (width - _LEFT - _RIGHT)

    def down(value: float) -> float:
        share = (scale(value) - low) / (high - low)
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


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    """Powers of ten, with 2 and 5 between where those alone are too few."""
    first = math.floor(math.log10(low))
    last = math.ceil(math.log10(high))
    units = (1,) if last - first >= count else (1, 2, 5)
    # One power more at each end: logarithms are rounded.
    powers = range(first - 1, last + 2)
    found = [unit * 10.0**power for power in powers for unit in units]
    start = max(number for number in found if number <= low)
    end = min(number for number in found if number >= high)
    return [number for number in found if start <= number <= end]


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
