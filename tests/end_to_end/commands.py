"""Runs the real commands, as a user would, in processes of their own."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from run_folder.predictions import read_logits

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path("~/.cache/sextet/tests").expanduser()

# XLA_FLAGS to compile quickly rather than well: there is little to compute.
HASTY = (
    "--xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU's compiler (200 MB), is optional: docs/tpu_vm.md",
)

# Two stages, four evaluations, 36 steps: seconds, once the step is compiled.
SHORT = (
    "--config=configs/miniconvnext.py:demo",
    "--config.epochs=2",
    "--config.eval.every_epochs=0.5",
    "--config.log_every_steps=3",
    f"--config.cache_dir={CACHE}",
)


# A program: train.py for each list of words in turn, in one process, for
# mistakes that are many and quick. Prints (exit code, standard error) of each.
ONE_BY_ONE = """
import contextlib, io, json, sys
import train
for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            code = train.main(words)
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, said.getvalue()]))
"""


def environment() -> dict[str, str]:
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def run(*arguments: str, timeout: float = 300):
    """Runs `python <arguments>` in the repo; returns the finished process."""
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def train(workdir: Path, *arguments: str):
    return run("train.py", f"--workdir={workdir}", *SHORT, *arguments)


def in_background(words: list[str], stdout) -> subprocess.Popen:
    """Starts a command as a terminal would: Ctrl-C reaches its whole group.

    Tests that were started in the background themselves have inherited that
    Ctrl-C is ignored, and would hand it on.
    """
    return subprocess.Popen(
        ["env", "--default-signal=INT,HUP", *words],
        cwd=ROOT,
        env=environment(),
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def start(workdir: Path, *arguments: str) -> subprocess.Popen:
    """Starts a training in the background, its output in `<workdir>.out`."""
    words = command("train.py", f"--workdir={workdir}", *SHORT, *arguments)
    with open(f"{workdir}.out", "a") as output:
        return in_background(words, output)


def records(workdir: Path) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def write_competition(
    root: Path, classes=("0", "1", "4"), per_class: int = 10, tests: int = 6
) -> None:
    """A folder in the competition's layout; a class is a shade of colour."""
    generator = np.random.default_rng(0)
    (root / "img_train").mkdir(parents=True)
    (root / "img_test").mkdir()
    rows = ["img_id,target_feature"]
    for i in range(per_class * len(classes)):
        label = i % len(classes)
        _write_photo(root / f"img_train/{i}.jpg", label, generator)
        rows.append(f"{i},{classes[label]}")
    (root / "train_answers.csv").write_text("\n".join(rows) + "\n")
    sample = ["id,target_feature"]
    for i in range(tests):
        _write_photo(root / f"img_test/{900 + i}.jpg", i % 3, generator)
        sample.append(f"{900 + i},{classes[0]}")
    (root / "sample_submission.csv").write_text("\n".join(sample) + "\n")


def _write_photo(path: Path, label: int, generator) -> None:
    pixels = generator.integers(0, 60, (40, 48, 3)) + 60 * label
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def assert_same_run(one, other):
    """Metrics and logits are equal to the last bit."""
    first = (one / "metrics.jsonl").read_bytes()
    assert first == (other / "metrics.jsonl").read_bytes()
    for split in ("val", "test"):
        a = read_logits(one / f"logits/{split}.npz")
        b = read_logits(other / f"logits/{split}.npz")
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.logits, b.logits)
