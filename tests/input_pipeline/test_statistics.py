from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from sample_images import encoded, photo

from core.errors import UserError
from input_pipeline import parallel_scan, statistics
from input_pipeline.sources.base import ArrayExamples, FileExamples


@pytest.fixture
def images(tmp_path):
    """Five PNG files of different sizes; number 3 cannot be read."""
    names = [f"{row}.png" for row in range(5)]
    for row, name in enumerate(names):
        data = encoded(photo(10 + 7 * row, 20, seed=row), "PNG")
        (tmp_path / name).write_bytes(b"" if row == 3 else data)
    return FileExamples(
        np.array(names), np.zeros(5, np.int32), str(tmp_path), names
    )


def test_statistics_are_global_over_all_pixels(images, tmp_path):
    rows = np.array([4, 0, 3, 1])
    mean, std = statistics.channel_stats(images, rows, tmp_path / "cache", "f")
    pixels = [photo(10 + 7 * row, 20, seed=row) for row in (0, 1, 4)]
    values = np.concatenate([p.reshape(-1, 3) for p in pixels]) / 255.0
    np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(std, values.std(axis=0), rtol=1e-6)
    assert mean.dtype == std.dtype == np.float32


def test_the_cache_answers_for_the_same_rows_of_the_same_source(
    images, tmp_path, monkeypatch
):
    cache, rows = tmp_path / "cache", np.array([0, 1, 2])
    first = statistics.channel_stats(images, rows, cache, "f")
    measured = []
    original = statistics._measure
    monkeypatch.setattr(
        statistics,
        "_measure",
        lambda *given: measured.append(1) or original(*given),
    )
    again = statistics.channel_stats(images, rows[::-1], cache, "f")
    np.testing.assert_array_equal(first, again)
    assert not measured
    statistics.channel_stats(images, rows[:2], cache, "f")
    statistics.channel_stats(images, rows, cache, "other source")
    assert len(measured) == 2
    # All of them are in one readable file.
    assert len(json.loads((cache / "channel_stats.json").read_text())) == 3


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 1}', '{"x": {}}'])
def test_a_damaged_cache_is_made_again(images, tmp_path, text):
    path = tmp_path / "channel_stats.json"
    path.write_text(text)
    mean, _ = statistics.channel_stats(images, np.array([0]), tmp_path, "f")
    np.testing.assert_allclose(
        mean, photo(10, 20, seed=0).mean(axis=(0, 1)) / 255, rtol=1e-6
    )


def test_images_of_one_colour_do_not_divide_by_zero(tmp_path):
    pixels = np.full((2, 4, 4, 3), 77, np.uint8)
    images = ArrayExamples(np.array(["a", "b"]), np.zeros(2, np.int32), pixels)
    _, std = statistics.channel_stats(images, np.arange(2), tmp_path, "f")
    assert (std > 0).all()


def test_no_readable_image_is_an_error(images, tmp_path):
    with pytest.raises(UserError, match=r"none of the 1 .*--config\.data"):
        statistics.channel_stats(images, np.array([3]), tmp_path, "f")


def test_progress_is_told_when_it_takes_long(
    images, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(parallel_scan, "_SILENCE_SECONDS", 0.0)
    statistics.channel_stats(images, np.arange(5), tmp_path, "f")
    lines = capsys.readouterr().err.splitlines()
    # The first one starts the clock.
    assert lines[0].startswith("channel statistics: 2 of 5 images, ")
    assert len(lines) == 3 and lines[0].endswith(" s left")


def test_a_quick_pass_says_nothing(images, tmp_path, capsys):
    statistics.channel_stats(images, np.arange(5), tmp_path, "f")
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    statistics.channel_stats(images, np.arange(5), tmp_path, "f")
    assert "channel statistics" in capsys.readouterr().err
