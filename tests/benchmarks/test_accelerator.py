from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks import accelerator


class Worker:
    """Images per second by batch size; memory ends where there is none."""

    def __init__(self, rates):
        self.reason = ""
        self._rates = rates

    def ask(self, kind, batch, steps):
        if batch not in self._rates:
            return "failed", "RESOURCE_EXHAUSTED"
        return "done", self._rates[batch], batch / 64, 1.0


def search(rates, batches=(32, 64, 128, 256)):
    worker = Worker(rates)
    return accelerator.Side.search(worker, "train", batches, 1), worker.reason


def test_batch_grows_until_it_gains_nothing():
    found, reason = search({32: 100.0, 64: 180.0, 128: 181.0, 256: 900.0})
    assert found["batch"] == 128
    assert set(found["by_batch"]) == {32, 64, 128}
    assert reason == ""


def test_batch_grows_until_memory_ends():
    found, reason = search({32: 100.0, 64: 180.0})
    assert found["batch"] == 64
    assert found["memory_gib"] == 1.0
    assert reason == "RESOURCE_EXHAUSTED"
    assert search({})[0] is None


@pytest.mark.slow
def test_rehearsal_without_a_card_and_without_torch(tmp_path):
    path = tmp_path / "accelerator.json"
    ran = subprocess.run(
        [
            *(sys.executable, "benchmarks/accelerator.py", "--tiny"),
            *("--models", "miniconvnext_demo", "--batches", "2"),
            *("--json", str(path)),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "| miniconvnext_demo |" in ran.stdout
    models = json.loads(path.read_text())["models"]
    assert models["miniconvnext_demo"]["ours"]["train"]["images_per_s"] > 0
    assert models["miniconvnext_demo"]["timm"]["reason"]
