"""train.py on the digits: what it says, what it leaves, how it stops."""

import json
import os
import re
import signal
import time

import numpy as np
import pytest
from commands import assert_same_run, records, run, start, train

from run_folder.predictions import read_logits


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody stopped: (workdir, finished process)."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    process = train(workdir)
    assert process.returncode == 0, process.stderr
    return workdir, process


def test_it_says_what_it_will_do_and_then_how_it_goes(whole):
    output = whole[1].stdout
    for part in (
        "miniconvnext_demo",
        "parameters",
        "1 x cpu",
        "1,149 to train, 288 to validate (fold 0 of 5), 360 to predict",
        "No data.root was given",
        "stage 1",
        "one_cycle",
        "best so far",
        "with TTA",
    ):
        assert part in output
    # The plan stands before the first step.
    assert output.index("34 in 2 stages") < output.index("step ")


def test_progress_has_speed_loss_rate_and_time_to_go(whole):
    output = whole[1].stdout
    line = re.search(
        r"step +\d+/34  epoch [\d.]+/2  loss [\d.]+  lr \S+  "
        r"[\d,]+ img/s  eta .+",
        output,
    )
    assert line, output
    assert "estimated time: " in output


def test_it_leaves_the_run_folder_of_the_contract(whole):
    workdir, _ = whole
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"] == "miniconvnext_demo"
    assert (workdir / "report.html").stat().st_size > 1000
    assert (workdir / "folds.csv").exists()
    found = records(workdir)
    steps = [r["step"] for r in found if r["kind"] == "train"]
    assert steps == list(range(3, 35, 3))
    evaluated = [r["step"] for r in found if r["kind"] == "eval"]
    # Every half epoch of 17 steps, and at the end of each stage.
    assert evaluated == [8, 16, 24, 26, 34]
    assert all(np.isfinite(r["loss"]) for r in found if r["kind"] == "train")


def test_logits_files_hold_each_row_once_with_its_truth(whole):
    workdir, _ = whole
    val = read_logits(workdir / "logits/val.npz")
    test = read_logits(workdir / "logits/test.npz")
    assert (len(val), len(test)) == (288, 360)
    assert len(set(val.ids)) == 288 and not set(val.ids) & set(test.ids)
    assert (val.fold == 0).all() and (test.fold == -1).all()
    assert list(val.classes) == [str(digit) for digit in range(10)]
    assert val.metadata["tta_views"] == ["center", "crop"]
    assert val.metadata["folds_hash"] == test.metadata["folds_hash"]


def test_the_logits_are_those_of_the_best_checkpoint(whole):
    workdir, process = whole
    best = max(r["val_macro_f1"] for r in records(workdir) if "best" in r)
    said = re.search(r"macro-F1 ([\d.]+) with one view", process.stdout)
    assert float(said[1]) == pytest.approx(best, abs=6e-5)


def test_a_finished_run_says_so_and_exports_on_request(whole):
    workdir, _ = whole
    before = (workdir / "logits/val.npz").read_bytes()
    again = train(workdir)
    assert again.returncode == 0
    assert "finished" in again.stdout
    (workdir / "logits/val.npz").unlink()
    exported = train(workdir, "--export")
    assert exported.returncode == 0, exported.stderr
    old = np.frombuffer(before, np.uint8).tobytes()
    assert (workdir / "logits/val.npz").read_bytes() == old


@pytest.mark.slow  # Stopped and resumed elsewhere it must be the same, too.
def test_same_command_same_numbers_elsewhere(whole, tmp_path):
    twin = tmp_path / "twin"
    assert train(twin).returncode == 0
    assert_same_run(twin, whole[0])


@pytest.mark.parametrize(
    ("number", "code", "workers"),
    [
        (signal.SIGTERM, 143, 0),
        pytest.param(signal.SIGINT, 130, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, 1, marks=pytest.mark.slow),
    ],
)
def test_asked_to_stop_it_saves_and_continues_later(
    whole, tmp_path, number, code, workers
):
    workdir = tmp_path / "stopped"
    process = start(workdir, f"--config.workers={workers}")
    wait_for_step(workdir, process, 0)
    for _ in range(3):  # A burst is one wish.
        os.killpg(process.pid, number)  # Loader processes hear it too.
        time.sleep(0.05)
    assert process.wait(timeout=30) == code
    output = (tmp_path / "stopped.out").read_text()
    stopped = re.search(r"stopped at step (\d+)", output)
    assert stopped, output
    again = train(workdir)
    assert again.returncode == 0, again.stderr
    assert f"at step {stopped[1]}" in again.stdout
    assert_same_run(workdir, whole[0])


def test_while_its_step_is_compiled_it_ends_at_once(tmp_path):
    """There is nothing to save yet, and compiling may take minutes."""
    empty = f"--config.cache_dir={tmp_path / 'cache'}"
    process = start(tmp_path / "early", empty)
    output = tmp_path / "early.out"
    while "compiling" not in output.read_text():
        assert process.poll() is None, output.read_text()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=15) == 130
    assert output.read_text().endswith("stopped by Ctrl-C\n")


@pytest.mark.slow
def test_colours_on_the_device_stop_and_continue_as_exactly(tmp_path):
    settings = (
        "--config.augment.device=True",
        "--config.augment.jitter=(0.4, 0.4, 0.4, 0.1)",
        "--config.augment.grayscale=0.2",
    )
    whole = train(tmp_path / "whole", *settings)
    assert whole.returncode == 0, whole.stderr
    process = start(tmp_path / "stopped", *settings)
    wait_for_step(tmp_path / "stopped", process, 0)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    again = train(tmp_path / "stopped", *settings)
    assert again.returncode == 0, again.stderr
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_second_process_in_the_same_folder_is_refused(tmp_path):
    workdir = tmp_path / "shared"
    first = start(workdir)
    try:
        wait_for_step(workdir, first, 0)
        # Held there: it might be done before the second one has started.
        first.send_signal(signal.SIGSTOP)
        second = train(workdir)
        assert second.returncode == 2
        assert "another process" in second.stderr
        assert str(workdir) in second.stderr
    finally:
        first.kill()
        first.wait()
    # The lock does not outlive the killed process.
    third = start(workdir)
    try:
        wait_for_step(workdir, third, len(records(workdir)))
    finally:
        third.kill()
        third.wait()


def test_other_data_in_the_same_folder_are_refused(whole, tmp_path):
    workdir, _ = whole
    lines = (workdir / "folds.csv").read_text().splitlines()
    other = tmp_path / "folds.csv"
    rows = [line for line in lines if not line.startswith(("#", "id,"))]
    swapped = [f"{r[:-1]}{(int(r[-1]) + 1) % 5}" for r in rows]
    other.write_text("id,fold\n" + "\n".join(swapped) + "\n")
    process = train(workdir, "--export", f"--config.data.folds_file={other}")
    assert process.returncode == 2
    assert "the folds are not those" in process.stderr


def test_another_config_in_the_same_folder_is_refused(whole):
    workdir, _ = whole
    before = sorted(p.name for p in workdir.iterdir())
    process = train(workdir, "--config.seed=7")
    assert process.returncode == 2
    assert "seed: 42 -> 7" in process.stderr
    assert len(process.stderr.strip().splitlines()) == 1
    assert sorted(p.name for p in workdir.iterdir()) == before


def test_help_answers_at_once_and_tells_how_to_set_a_field():
    began = time.perf_counter()
    process = run("train.py", "--help")
    assert process.returncode == 0
    assert "--config.data.root=" in process.stdout
    # Without JAX this takes a fifth of a second; the bound is for busy days.
    assert time.perf_counter() - began < 10


def wait_for_step(workdir, process, count, seconds=240):
    """Returns when the process has logged more than `count` records."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until and process.poll() is None:
        path = workdir / "metrics.jsonl"
        if path.exists() and path.read_bytes().count(b"\n") > count:
            return
        time.sleep(0.02)
    output = workdir.with_name(workdir.name + ".out").read_text()
    assert process.poll() == 0, f"no step was logged:\n{output}"
