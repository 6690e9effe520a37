"""Charts are right, whatever numbers they are given."""

import re

import numpy as np
import pytest

from reports.charts import Line, Points, line_chart, nice_ticks, scatter
from reports.heatmap import confusion_heatmap


def test_numbers_of_one_axis_are_written_alike():
    x = np.arange(3.0)
    chart = line_chart([Line("rate", x, np.array([0, 1e-3, 2e-3]))], "rate")
    ticks = re.findall('text-anchor="end">([^<]*)<', chart)
    assert ticks == ["0", "5e-4", "1e-3", "1.5e-3", "2e-3"]


def test_chart_of_odd_numbers_is_still_a_chart():
    x = np.array([0.0, 1, 2, 3])
    y = np.array([np.nan, np.inf, 1.0, 1.0])
    chart = line_chart([Line("loss", x, y)], "loss")
    assert "nan" not in chart and "inf" not in chart
    assert "Nothing was recorded" in line_chart(
        [Line("loss", x, np.full(4, np.nan))], "loss"
    )


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (1e-7, 3e-7), (-5, 9000), (2, 2), (0, 0)]
)
def test_ticks_are_round_and_cover_the_range(low, high):
    ticks = nice_ticks(low, high, 4)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 7
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_names_in_a_chart_are_escaped():
    heatmap = confusion_heatmap(np.eye(2, dtype=int), ["<b>", 'a"b'])
    assert "<b>" not in heatmap and "&lt;b&gt;" in heatmap
    assert 'a"b' not in heatmap
    x = np.arange(2.0)
    assert '"<"' not in line_chart([Line("rate", x, x)], '"<"')


def test_given_ticks_are_the_axes():
    x = np.array([0.0, 0.5, 1.0])
    ticks = [(-1, "one"), (0, "<two>"), (2, "three")]
    chart = line_chart([Line("l", x, x)], "l", x_ticks=ticks, y_ticks=ticks)
    assert re.findall(">([^<>]+)</text>", chart) == 2 * [
        "one",
        "&lt;two&gt;",
        "three",
    ]
    (points,) = re.findall('points="([^"]+)"', chart)
    across = [float(point.split(",")[0]) for point in points.split()]
    # A third of the way from -1 to 2, a half, two thirds.
    left, right = 40, 420 - 8
    np.testing.assert_allclose(
        across,
        left + (right - left) * np.array([1 / 3, 1 / 2, 2 / 3]),
        atol=0.1,
    )


def test_a_scatter_has_one_scale_and_room_for_all():
    xy = np.array([[0.0, 0.0], [10.0, 5.0], [4.0, 1.0]])
    plot = scatter([Points("a", xy), Points("b", xy[:1], crosses=True)], "<p>")
    (size,) = re.findall(r'viewBox="0 0 (\d+ \d+)"', plot)
    width, height = map(int, size.split())
    assert (width - 16) / (height - 16) == pytest.approx(2, abs=0.02)
    centers = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', plot)
    assert len(centers) == 3 and plot.count("<path") == 1
    for across, down in centers:
        assert 0 < float(across) < width and 0 < float(down) < height
    assert 'aria-label="&lt;p&gt;"' in plot
    assert "nan" not in scatter([Points("a", xy[:1])], "one point")


def test_a_logarithmic_axis_goes_through_powers_of_ten():
    y = np.array([3.0, 0.3, 0.03])
    chart = line_chart([Line("loss", np.arange(3.0), y)], "loss", log=True)
    ticks = re.findall('text-anchor="end">([^<]*)<', chart)
    assert ticks == ["0.02", "0.05", "0.1", "0.2", "0.5", "1", "2", "5"]
    points = re.search('points="([^"]*)"', chart)[1].split()
    heights = [float(point.split(",")[1]) for point in points]
    # Equal factors are equal distances.
    assert abs(np.diff(heights)[0] - np.diff(heights)[1]) < 0.2


@pytest.mark.parametrize(("least", "most"), [(1e-3, 1.0), (1e-2, 1e3)])
def test_a_logarithmic_axis_holds_what_lies_beside_a_power(least, most):
    """Their logarithms are rounded to those of the powers themselves."""
    y = np.array([np.nextafter(least, 0), np.nextafter(most, np.inf)])
    chart = line_chart([Line("loss", np.arange(2.0), y)], "loss", log=True)
    heights = re.search('points="[^,]*,([^ ]*) [^,]*,([^"]*)"', chart).groups()
    assert float(heights[0]) > float(heights[1])
