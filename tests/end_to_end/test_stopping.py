"""Signals outside the steps: at imports, compiling, predicting."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from commands import assert_same_run, command, in_background, run
from in_process import TINY

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
COMMANDS = {
    "train": ["train.py", *TINY, "--workdir={}"],
    "stacking": ["-m", "stacking", "--runs={}", "--out={}"],
    "input_pipeline": ["-m", "input_pipeline", *TINY, "--out={}/a.png"],
    "predict": ["predict.py", "--run={}", "README.md"],
    "jax_models": ["-m", "jax_models"],
}


def begin(words):
    return in_background(command(*words), subprocess.PIPE)


def wait_until_it_hears(process, seconds=60):
    """Returns when the process has taken charge of its signals."""
    status, until = Path(f"/proc/{process.pid}/status"), time.time() + seconds
    bit = 1 << (signal.SIGTERM - 1)
    while time.time() < until:
        caught = status.read_text().partition("SigCgt:")[2].split()[0]
        if int(caught, 16) & bit:
            return
        time.sleep(0.005)
    raise AssertionError("it never took charge of its signals")


def stop(process, number, seconds=30):
    """Signals the whole group, as a terminal does; returns what was said."""
    for _ in range(3):  # A burst, as schedulers send.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        time.sleep(0.02)
    said, _ = process.communicate(timeout=seconds)
    assert process.returncode == CODES[number], said
    assert "Traceback" not in said and "Error" not in said, said
    return said


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_while_it_is_imported(tmp_path, words, number):
    out = tmp_path / "out"
    process = begin([word.format(out) for word in words])
    wait_until_it_hears(process)
    time.sleep(0.2)
    assert "stopped by" in stop(process, number)
    assert not out.exists()


def wait_for_line(process, part):
    for line in process.stdout:
        if part in line:
            return
    raise AssertionError(f"{part!r} was never said")


@pytest.mark.slow
def test_outside_the_steps_it_stops_at_once_and_resumes_later(tmp_path):
    workdir, whole = tmp_path / "run", tmp_path / "whole"
    train = [*COMMANDS["train"][:-1], f"--workdir={workdir}"]
    for moment, seconds, number in (
        # Loader processes are starting.
        ("compiling the step", 0.0, signal.SIGINT),
        ("compiling the step", 1.0, signal.SIGTERM),
        ("predicting with", 0.0, signal.SIGHUP),
        ("validation macro-F1", 0.0, signal.SIGTERM),
    ):
        process = begin([*train, "--config.workers=1"])
        wait_for_line(process, moment)
        time.sleep(seconds)
        stop(process, number)
    assert run(*train).returncode == 0
    assert run(*train[:-1], f"--workdir={whole}").returncode == 0
    assert_same_run(workdir, whole)
