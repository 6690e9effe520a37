"""Event files and Weights & Biases hear what metrics.jsonl holds."""

import importlib.util
import json
import math
import sys

import pytest

from core.errors import UserError
from training.loop import dashboards, telemetry
from training.loop.metrics_log import MetricsLog


def needs(package):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None,
        reason=f"{package} is optional: requirements-dashboards.txt",
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


@needs("tensorboardX")
def test_event_files(tmp_path):
    """Read back by the framing of TFRecord: length, its CRC, data, its CRC."""
    from tensorboardX.proto.event_pb2 import Event

    log = dashboards.TensorBoard(tmp_path, 0)
    for entry in ENTRIES:
        log.record(entry)
    log.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    data, found = path.read_bytes(), {}
    while data:
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
        data = data[16 + size :]
    assert found["train/loss", 2] == 2.0
    assert found["eval/loss", 4] == 1.5
    assert found["speed/images_per_second", 4] == 30.0
    assert ("train/loss", 4) not in found


@needs("wandb")
@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    log = dashboards.WeightsAndBiases(tmp_path, "digits", {"seed": 42})
    for entry in ENTRIES:
        log.record(entry)
    log.close()
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    (data,) = folder.glob("*.wandb")
    content = data.read_bytes()
    for name in (b"train/loss", b"eval/loss", b"images_per_second"):
        assert name in content


@pytest.mark.parametrize("package", ["tensorboardX", "wandb"])
def test_what_is_not_installed_is_asked_for(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"requirements-dashboards\.txt"):
        if package == "wandb":
            dashboards.WeightsAndBiases(tmp_path, "p", {})
        else:
            dashboards.TensorBoard(tmp_path, 0)


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
