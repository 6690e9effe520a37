"""Event files and Weights & Biases hear what metrics.jsonl holds."""

import importlib.util
import json
import math

import pytest

from core.errors import UserError
from training.loop import dashboards, telemetry
from training.loop.metrics_log import MetricsLog

needs_wandb = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None,
    reason="wandb is optional: pip install wandb",
)

ENTRIES = [
    {"kind": "train", "step": 2, "stage": 0, "epoch": 0.5, "loss": 2.0},
    {"kind": "train", "step": 4, "stage": 0, "epoch": 1.0, "loss": None},
    {
        "kind": "eval",
        "step": 4,
        "stage": 0,
        "epoch": 1.0,
        "val_loss": 1.5,
        "best": True,
    },
    {
        "kind": "speed",
        "step": 4,
        "epoch": 1.0,
        "seconds": 8.0,
        "images_per_second": 30.0,
        "waiting": None,
    },
]


def test_places_and_what_is_not_finite_are_no_scalars():
    found = [dict(dashboards.scalars(entry)) for entry in ENTRIES]
    assert found[0] == {"train/epoch": 0.5, "train/loss": 2.0}
    assert found[1] == {"train/epoch": 1.0}
    assert found[2] == {"eval/epoch": 1.0, "eval/loss": 1.5}
    assert found[3]["speed/images_per_second"] == 30.0
    assert not dict(dashboards.scalars({"kind": "train", "loss": math.inf}))


def test_event_files(tmp_path):
    log = dashboards.TensorBoard(tmp_path, 0)
    for entry in ENTRIES:
        log.record(entry)
    log.close()
    log = dashboards.TensorBoard(tmp_path, 4)  # Continued in a second file.
    log.close()
    first, second = sorted((tmp_path / "tensorboard").iterdir())
    content = first.read_bytes()
    for name in (b"train/loss", b"eval/loss", b"speed/images_per_second"):
        assert content.count(name) == 1
    assert b"brain.Event:2" in second.read_bytes()


def test_event_files_of_a_full_disk(tmp_path, monkeypatch):
    log = dashboards.TensorBoard(tmp_path, 0)

    def full(*values):
        raise OSError("no space left on device")

    monkeypatch.setattr(log._file, "scalars", full)
    log.record(ENTRIES[0])
    log.close()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="tensorboard"):
        dashboards.TensorBoard(tmp_path / "file", 0)


@needs_wandb
@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    log = dashboards.WeightsAndBiases(tmp_path, "digits", {"seed": 42})
    for entry in ENTRIES:
        log.record(entry)
    log.close()
    wandb.teardown()  # Its own process writes, and has ended after this.
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    (data,) = folder.glob("*.wandb")
    content = data.read_bytes()
    for name in (b"train/loss", b"eval/loss", b"images_per_second"):
        assert name in content


def test_telemetry_is_kept_over_restarts(tmp_path):
    path = tmp_path / "telemetry.jsonl"
    for _ in range(2):
        log = telemetry.TelemetryFile(path, {"command": "train"})
        for entry in ENTRIES:
            log.record(entry)
        log.close()
        log.record(ENTRIES[-1])  # Falls silent.
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [one["kind"] for one in found] == ["start", "speed"] * 2


def test_telemetry_never_stops_a_run(tmp_path, monkeypatch):
    telemetry.TelemetryFile(tmp_path / "gone/t.jsonl", {}).close()

    def full(self, line):
        raise UserError("the disk is full")

    monkeypatch.setattr(MetricsLog, "append", full)
    log = telemetry.TelemetryFile(tmp_path / "t.jsonl", {})
    log.record(ENTRIES[-1])
    log.close()


def test_a_bucket_that_does_not_answer_never_stops_a_run(tmp_path, monkeypatch):
    def unreachable(*values, **options):
        raise ConnectionError("no route to the bucket")

    log = telemetry.TelemetryFile(tmp_path / "t.jsonl", {})
    monkeypatch.setattr(MetricsLog, "sync", unreachable)
    monkeypatch.setattr(telemetry, "run_report", unreachable)
    for listener in (log, telemetry.ReportPage(tmp_path)):
        listener.record(ENTRIES[2])
        listener.close()
    monkeypatch.setattr(MetricsLog, "__init__", unreachable)
    telemetry.TelemetryFile(tmp_path / "t.jsonl", {}).close()
