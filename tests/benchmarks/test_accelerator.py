from __future__ import annotations

import json
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from benchmarks import accelerator, accelerator_pairs, accelerator_sides
from benchmarks.accelerator_pairs import Pair, Work


class Side:
    """Takes no time; memory ends above a batch size."""

    def __init__(self, rate=100.0, memory=1 << 20, reason=""):
        self._rate, self._memory, self._reason = rate, memory, reason
        self.batches = []

    def send(self, kind, batch, steps):
        self.batches.append(batch)

    def receive(self, deadline):
        if self._reason:
            return "failed", self._reason
        if self.batches[-1] > self._memory:
            return "failed", "XlaRuntimeError: RESOURCE_EXHAUSTED: much"
        return "done", {"rate": self._rate, "memory": 1.0, "took": 2.0}

    def halt(self):
        pass

    resume = close = halt


@pytest.fixture
def options(tmp_path):
    return types.SimpleNamespace(
        **dict(rounds=2, steps=3, size=64, ahead=1, seconds=None),
        json=str(tmp_path / "found.json"),
    )


def pair_of(monkeypatch, options, work, **sides):
    monkeypatch.setattr(
        accelerator_pairs, "Side", lambda label, name, size: sides[label]
    )
    return Pair(work, sides, options)


def test_batch_is_halved_for_both_when_memory_ends(monkeypatch, options):
    ours, timm = Side(memory=40), Side()
    work = Work("train", "net", 128)
    pair = pair_of(monkeypatch, options, work, ours=ours, timm=timm)
    pair.prepare(time.monotonic() + 60)
    pair.measure(time.monotonic() + 60)
    assert pair.batch == 32 and not pair.reasons
    assert ours.batches == timm.batches == [128, 64, 32, 32, 32]
    assert set(pair.found) == {"ours", "timm"}


def test_larger_batches_are_not_halved(monkeypatch, options):
    work = Work("train", "net", 128, larger=True)
    sides = dict(ours=Side(memory=64), timm=Side())
    pair = pair_of(monkeypatch, options, work, **sides)
    pair.prepare(time.monotonic() + 60)
    assert pair.batch == 128
    assert set(pair.reasons) == {"ours"} and set(pair.found) == {"timm"}


def test_a_side_that_cannot_run_leaves_the_other(monkeypatch, options):
    sides = dict(ours=Side(), timm=Side(reason="ImportError: no torch"))
    pair = pair_of(monkeypatch, options, Work("train", "net", 8), **sides)
    pair.prepare(time.monotonic() + 60)
    pair.measure(time.monotonic() + 60)
    assert pair.reasons == {"timm": "ImportError: no torch"}
    assert set(pair.found) == {"ours"}


def test_the_best_batch_gains_more_than_it_costs():
    side = {}
    done = {"memory": 1.0, "took": 2.0}
    add = accelerator.add_rate
    assert add(side, "train", 32, {**done, "rate": 100.0})
    assert add(side, "train", 64, {**done, "rate": 180.0})
    assert not add(side, "train", 128, {**done, "rate": 181.0})
    assert side["train"]["batch"] == 64
    assert set(side["train"]["by_batch"]) == {32, 64, 128}


def test_what_matters_most_comes_first():
    works = accelerator.lay_out({"net": 32, "net mae": 16}, 256)
    assert list(map(str, works)) == [
        "peak",
        "train net",
        "train net mae",
        "evaluate net",
        "load",
        "train net at 64",
        "train net mae at 32",
    ]


def test_what_does_not_fit_is_not_begun(monkeypatch, options):
    monkeypatch.setattr(accelerator_pairs, "Side", lambda *args: Side())
    monkeypatch.setattr(accelerator, "multiply_adds", lambda *args: 1)
    options.seconds = 60
    session = accelerator.Session(options)
    session._seconds |= {"train": [1.0], "evaluate": [1000.0]}
    session.run([Work("train", "net", 8), Work("evaluate", "net", 8)])
    found = json.loads(Path(options.json).read_text())
    ours = found["models"]["net"]["ours"]
    assert ours["train"]["images_per_s"] == 100 and "evaluate" not in ours
    assert session.skipped == ["evaluate net"]
    assert "no time was left: evaluate net." in accelerator.describe(session)


def test_a_process_that_does_not_answer_is_killed():
    side = accelerator_sides.Side("ours", "miniconvnext_demo", 64)
    side.halt()
    side.send("train", 2, 1)
    assert side.receive(time.monotonic()) == (
        "failed",
        accelerator_sides.NO_TIME,
    )
    assert not side._process.is_alive()


@pytest.mark.slow
def test_rehearsal_without_a_card_and_without_torch(tmp_path):
    path = tmp_path / "accelerator.json"
    ran = subprocess.run(
        [
            *(sys.executable, "benchmarks/accelerator.py", "--tiny"),
            *("--models", "miniconvnext_demo", "--batch", "2"),
            *("--json", str(path)),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "| miniconvnext_demo |" in ran.stdout
    found = json.loads(path.read_text())
    assert found["given"]["input_images_per_s"] > 0
    sides = found["models"]["miniconvnext_demo"]
    assert sides["ours"]["train"]["images_per_s"] > 0
    assert sides["timm"]["reason"]
