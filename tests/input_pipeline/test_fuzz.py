"""No file makes the decoder crash, hang, or take all memory."""

from __future__ import annotations

import fuzz_decoder
import pytest

# For an image of as many pixels as are allowed, on a machine that others use.
SECONDS = 30.0
MEGABYTES = 2000


def check(figures, count):
    read, refused = figures["read"], figures["refused"]
    assert read.total() + refused.total() == count
    # Damage that nothing survives, or that nobody notices, would test nothing.
    assert min(read.total(), refused.total()) > count / 10
    assert figures["seconds"] < SECONDS
    assert figures["megabytes"] < MEGABYTES


def test_healthy_files_are_read():
    for name, data in fuzz_decoder.healthy().items():
        pixels = fuzz_decoder.decode(data)
        sides = (fuzz_decoder.HEIGHT, fuzz_decoder.WIDTH)
        if name == "jpeg exif" or name == "png":  # Both say: turn me.
            sides = sides[::-1]
        assert pixels.shape == (*sides, 3), name


def test_damaged_files_are_read_or_refused():
    check(fuzz_decoder.fuzz(200), 200)


def test_a_crash_of_the_decoder_would_be_told(monkeypatch):
    with pytest.raises(AssertionError, match="decoding ended with"):
        monkeypatch.setattr(fuzz_decoder.sys, "executable", "/bin/false")
        fuzz_decoder.fuzz(1)


@pytest.mark.slow
def test_ten_thousand_damaged_files(capsys):
    figures = fuzz_decoder.fuzz(10_000, first=1000)
    check(figures, 10_000)
    for name in fuzz_decoder.healthy():
        assert figures["read"][name] and figures["refused"][name], name
    with capsys.disabled():
        print(f"\n{fuzz_decoder.report(figures)}")
