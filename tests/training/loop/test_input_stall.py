"""The share of the time in which the device has no batch."""

from __future__ import annotations

import threading
import time

import pytest

from configs import common
from training.loop import input_stall
from training.loop.input_stall import InputStallMonitor


class Step:
    """What a step computes; it ends when `end` is set."""

    def __init__(self):
        self.end = threading.Event()

    def block_until_ready(self):
        assert self.end.wait(30)


class Machine:
    """A loader and a device that take their time on a clock of their own."""

    def __init__(self, compute, fetch):
        self.now, self.compute, self.load = 0.0, compute, fetch
        self.waiting = InputStallMonitor("eat less", lambda: self.now)
        self.running = None

    def batches(self):
        while True:
            if self.running is not None and self.load >= self.compute:
                self.now += self.compute
                self._end()
                self.now += self.load - self.compute
            else:
                self.now += self.load
            yield "batch"

    def run(self, steps):
        """One step at a time in flight, as in train.py."""
        batches = self.batches()
        for _ in range(steps):
            assert self.waiting.fetch(batches) == "batch"
            if self.running is not None and not self.running.end.is_set():
                self.now += self.compute - self.load
                self._end()
            self.running = Step()
            self.waiting.dispatched(self.running)

    def _end(self):
        self.running.end.set()
        deadline = time.monotonic() + 30
        while not self.waiting._end.done():
            assert time.monotonic() < deadline
            time.sleep(0.001)


@pytest.mark.parametrize(
    ("compute", "fetch", "expected"),
    [(3.0, 1.0, 0.0), (1.0, 4.0, 0.75), (2.0, 2.5, 0.2), (0.1, 1.0, 0.9)],
)
def test_what_counts_is_from_the_end_of_a_step_to_the_next_batch(
    compute, fetch, expected
):
    machine = Machine(compute, fetch)
    machine.run(14)
    assert machine.waiting.share == pytest.approx(expected)
    machine.waiting.close()


def test_the_complaint_comes_once_and_says_what_to_change():
    machine = Machine(1.0, 4.0)
    machine.run(5)
    assert machine.waiting.complaint() == ""  # too early to tell
    machine.run(10)
    assert machine.waiting.complaint() == (
        "the device waited for images for 75% of the last 52 s; eat less"
    )
    machine.run(20)
    assert machine.waiting.complaint() == ""
    assert machine.waiting.remark() == "  waiting 75%"
    machine.waiting.close()


def test_a_device_that_does_not_wait_is_not_spoken_of():
    machine = Machine(4.0, 1.0)
    machine.run(30)
    assert machine.waiting.complaint() == machine.waiting.remark() == ""
    machine.waiting.close()


def test_evaluations_do_not_count():
    machine = Machine(3.0, 1.0)
    for _ in range(4):
        machine.run(8)
        machine._end()
        machine.waiting.pause()
        machine.running = None
        machine.now += 1000.0
    machine.run(8)
    assert machine.waiting.share == 0.0
    assert machine.waiting._seconds < 200
    machine.waiting.close()


def test_a_step_that_fails_has_ended_too():
    class Broken:
        def block_until_ready(self):
            raise RuntimeError("out of memory")

    meter = InputStallMonitor("")
    meter.dispatched(Broken())
    assert meter._end.result(30) > 0
    meter.close()


def test_the_remedy_fits_the_run(monkeypatch):
    config = common.base()
    monkeypatch.setattr(input_stall, "usable_cores", lambda: 16)
    monkeypatch.setattr(input_stall.jax, "default_backend", lambda: "gpu")
    told = input_stall.remedy(config, 4)
    assert "--config.workers=15 (now 4) or" in told
    assert "--config.augment.device=True or" in told
    config.augment.device, config.data.source = True, "records"
    told = input_stall.remedy(config, 15)
    assert told == "keep photos of about twice config.image_size"
    config.augment.device = False
    monkeypatch.setattr(input_stall.jax, "default_backend", lambda: "cpu")
    assert "device" not in input_stall.remedy(config, 0)


def test_progress_and_complaint_reach_the_console(
    tmp_path, monkeypatch, capsys
):
    from test_recorder import make_recorder, measured

    monkeypatch.setattr("training.loop.recorder.SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(input_stall, "WINDOW_SECONDS", 0.0)
    monkeypatch.setattr(input_stall, "WINDOW_STEPS", 1)
    log = make_recorder(tmp_path / "m.jsonl", {})
    batches = (time.sleep(0.02) for _ in iter(int, 1))
    for step in range(1, 12):
        log.fetch(batches)
        log.step(step, measured())
    log.finish_steps()
    log.close()
    out = capsys.readouterr().out
    assert out.count("the device waited for images for") == 1
    assert "  waiting " in out
    assert "wait" not in (tmp_path / "m.jsonl").read_text()
