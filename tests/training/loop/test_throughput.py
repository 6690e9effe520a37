"""Images per second without the pauses."""

import pytest

from training.loop import throughput


def test_pauses_and_the_first_call_are_no_part_of_the_speed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    clock = throughput.Throughput()
    clock.start()
    now[0] = 60.0  # The first step is compiled.
    assert clock.advance(10) is None
    now[0] = 61.0
    assert clock.advance(30) == pytest.approx(20)
    clock.stop()
    now[0] = 500.0
    clock.start()
    now[0] = 501.0
    # Smoothed: 0.7 of 20 and 0.3 of 30 images a second.
    assert clock.advance(60) == pytest.approx(23)
