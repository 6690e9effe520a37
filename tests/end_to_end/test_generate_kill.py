"""SIGKILL in training and in sampling: the same images in the end."""

import json
import os
import signal
import time

import commands
import pytest
from commands import CACHE, ROOT

pytestmark = pytest.mark.slow

RECIPE = (
    f"--config={ROOT / 'tests/end_to_end/generation_recipe.py'}",
    # Long enough to be killed in the middle.
    "--config.epochs=2",
    "--config.eval.every_epochs=0.2",
    "--config.generate.count=400",
    "--config.generate.steps=10",
    f"--config.cache_dir={CACHE}",
)


def train(workdir):
    return commands.run("train.py", f"--workdir={workdir}", *RECIPE)


def kill_once(workdir, happened):
    """Starts the training, and kills it and its children at a moment."""
    with open(f"{workdir}.out", "a") as output:
        words = commands.command("train.py", f"--workdir={workdir}", *RECIPE)
        process = commands.in_background(words, output)
    end = time.monotonic() + 240
    while not happened():
        assert process.poll() is None, "it ended before it was to be killed"
        assert time.monotonic() < end
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def exported(workdir):
    manifest = json.loads((workdir / "samples/manifest.json").read_text())
    names = [image["file"] for image in manifest["images"]]
    return {name: (workdir / name).read_bytes() for name in names}


def test_killed_and_run_again_it_comes_to_the_same_images(tmp_path):
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    done = train(whole)
    assert done.returncode == 0, done.stderr

    saved = workdir / "checkpoints"
    kill_once(
        workdir,
        lambda: sum(path.name.isdigit() for path in saved.glob("*")) >= 2,
    )
    assert not (workdir / "samples").exists()
    # The images are written one after the other, the manifest behind them.
    kill_once(workdir, lambda: any(workdir.glob("samples/*/*.png")))
    assert not (workdir / "artifacts.json").exists()

    again = train(workdir)
    assert again.returncode == 0, again.stderr
    assert exported(workdir) == exported(whole)
    assert len(exported(whole)) == 400
    logs = [(run / "metrics.jsonl").read_bytes() for run in (whole, workdir)]
    assert logs[0] == logs[1]
