"""Contrastive pretraining through the real command, and what comes of it."""

import json
import os
import signal
import time

import commands
import numpy as np
import pytest

pytestmark = pytest.mark.slow

TINY = (
    "--config=configs/tinyvit_simclr.py:demo",
    "--config.model=convnextv2_demo",
    "--config.stages[0].batch_size=32",
    "--config.epochs=1",
    "--config.eval.every_epochs=0.2",
    "--config.log_every_steps=2",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped: its folder, and what it said."""
    workdir = tmp_path_factory.mktemp("runs") / "tinyvit_simclr"
    done = commands.train(workdir, *TINY)
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def losses(workdir, kind="train"):
    name = "loss" if kind == "train" else "val_loss"
    return [r[name] for r in commands.records(workdir) if r["kind"] == kind]


def test_it_learns_and_is_probed(whole):
    workdir, told = whole
    assert "NT-Xent over 16 photos in two views each" in told
    assert "on the frozen encoder a linear probe gets" in told
    found = losses(workdir, "eval")
    assert found[-1] < found[0]
    found = json.loads((workdir / "probe.json").read_text())
    assert found["linear"]["accuracy"] > 3 * found["most_frequent_class"]
    assert found["fitted_on"] == 1149 and found["scored_on"] == 288
    files = json.loads((workdir / "artifacts.json").read_text())["files"]
    assert "probe.json" in files
    page = (workdir / "report.html").read_text()
    assert "What the frozen encoder knows" in page


def test_killed_and_run_again_it_comes_to_the_same_bits(whole, tmp_path):
    workdir = tmp_path / "run"
    process = commands.start(workdir, *TINY)
    end = time.monotonic() + 240
    # A checkpoint gets its number as a name when it is whole.
    saved = workdir / "checkpoints"
    while not any(path.name.isdigit() for path in saved.glob("*")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again = commands.train(workdir, *TINY)
    assert again.returncode == 0, again.stderr
    assert "continues" in again.stdout
    for name in ("metrics.jsonl", "probe.json"):
        same = (whole[0] / name).read_bytes()
        assert (workdir / name).read_bytes() == same, name


def test_a_classifier_starts_from_it(whole):
    workdir = whole[0].parent / "tinyvit_ssl"
    done = commands.train(
        workdir,
        "--config=configs/tinyvit_ssl.py:demo",
        "--config.model=convnextv2_demo",
        "--config.init_from=tinyvit_simclr",
        "--config.epochs=1",
    )
    assert done.returncode == 0, done.stderr
    assert f"starts from the encoder in {whole[0]}" in done.stdout
    told = done.stdout.partition("initialised anew: ")[2].splitlines()[0]
    assert {name.split("/")[0] for name in told.split(", ")} == {"head"}


def test_two_devices_do_as_one(whole, tmp_path, monkeypatch):
    """A view's partner and its negatives may lie on the other device."""
    found = []
    for devices in (1, 2):
        flags = f"--xla_force_host_platform_device_count={devices}"
        monkeypatch.setenv("XLA_FLAGS", f"{commands.HASTY} {flags}")
        workdir = tmp_path / str(devices)
        # Of 34 views 17 lie on each: one pair lies on both.
        batch = "--config.stages[0].batch_size=34"
        done = commands.train(workdir, *TINY, batch, "--config.epochs=0.5")
        assert done.returncode == 0, done.stderr
        found.append((losses(workdir), losses(workdir, "eval")))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3)


def test_without_classes_it_is_not_probed_and_says_so(tmp_path):
    workdir = tmp_path / "run"
    scenes = "--config.data.source=digit_scenes"
    done = commands.train(workdir, *TINY, scenes, "--config.epochs=0.2")
    assert done.returncode == 0, done.stderr
    assert "not probed: the photos have masks and no classes" in done.stdout
    assert not (workdir / "probe.json").exists()


def test_a_run_without_classes_predicts_nothing_and_says_so(whole):
    done = commands.run("predict.py", "--run", str(whole[0]), "README.md")
    assert done.returncode == 2
    assert "gives no predictions for photos" in done.stderr
