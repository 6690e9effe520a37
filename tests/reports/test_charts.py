"""Charts are right, whatever numbers they are given."""

import re

import numpy as np
import pytest

from reports.charts import Line, confusion_heatmap, line_chart, nice_ticks


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
