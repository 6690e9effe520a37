"""`python -m stacking`, as a person calls it."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import CLASSES, made_up, write_run

from stacking.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


def call(*arguments, code=0):
    found = subprocess.run(
        [sys.executable, "-m", "stacking", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == code, found.stderr
    return found


def refused(*arguments):
    """The one sentence of a refusal."""
    said = io.StringIO()
    with (
        contextlib.redirect_stderr(said),
        pytest.raises(SystemExit, match="2"),
    ):
        main([str(argument) for argument in arguments])
    lines = said.getvalue().strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0]
    return errors[0]


def test_the_whole_command(tmp_path):
    logits, labels = made_up(260, len(CLASSES), 3, seed=0)
    sample = tmp_path / "sample.csv"
    order = np.random.default_rng(0).permutation(100)
    sample.write_text(
        "image,answer\n" + "".join(f"test-{i:05},0\n" for i in order)
    )
    for index, name in enumerate(("first", "second", "third")):
        write_run(
            tmp_path / "runs" / name,
            (logits[index, :160], labels[:160]),
            (logits[index, 160:], labels[160:]),
            sample_submission=str(sample),
        )
    out = tmp_path / "runs" / "stack"
    runs = f"{tmp_path}/runs/*"
    found = call("--runs", runs, "--out", out, "--trials", 20)
    for word in ("first", "soft vote", "CatBoost", "LightGBM", "final blend"):
        assert word in found.stdout
    assert "test F1" in found.stdout

    lines = (out / "submission.csv").read_text().splitlines()
    assert lines[0] == "image,answer"
    assert [line.split(",")[0] for line in lines[1:]] == [
        f"test-{i:05}" for i in order
    ]
    assert {line.split(",")[1] for line in lines[1:]} <= set(CLASSES)

    results = json.loads((out / "scores.json").read_text())
    names = ["first", "second", "third", "soft_vote", "greedy_vote"]
    names += ["logistic", "catboost", "lightgbm", "blend"]
    assert list(results["scores"]) == list(results["test_scores"]) == names
    blend = results["scores"]["blend"]
    low, high = blend["macro_f1_interval"]
    assert low < blend["macro_f1"] < high
    # A hundred test rows have an interval of their own.
    test_low, test_high = results["test_scores"]["blend"]["macro_f1_interval"]
    assert test_low < high and low < test_high
    assert results["final"]["blend_weights"] == {
        "catboost": 0.4,
        "lightgbm": 0.3,
        "soft_vote": 0.3,
    }
    answers = dict(line.split(",") for line in lines[1:])
    right = [
        answers[f"test-{i:05}"] == CLASSES[labels[160 + i]] for i in range(100)
    ]
    assert np.mean(right) == pytest.approx(
        results["test_scores"]["blend"]["accuracy"]
    )

    # Again from the saved stack: the same file. And the stack's own folder is
    # no run, although the glob names it.
    call("predict", "--stack", out, "--runs", runs, "--out", tmp_path / "2")
    assert (tmp_path / "2").read_text() == (out / "submission.csv").read_text()


def test_without_test_logits_there_are_scores_alone(tmp_path):
    logits, labels = made_up(80, 4, 2, seed=0)
    for index, name in enumerate("ab"):
        write_run(tmp_path / "runs" / name, (logits[index], labels))
    out = tmp_path / "out"
    found = call(
        *("--runs", f"{tmp_path}/runs/*", "--out", out),
        *("--boosters", "none", "--trials", 5),
    )
    assert "no submission" in found.stderr
    assert (out / "scores.json").exists() and (out / "report.html").exists()
    assert not (out / "submission.csv").exists()


def test_refusals_are_one_sentence_and_leave_nothing(three_runs, tmp_path):
    out = tmp_path / "out"
    quick = ("--out", out, "--boosters", "none", "--trials", 5)
    runs = f"{three_runs}/*"
    assert "does not exist" in refused("--runs", tmp_path / "no", *quick)
    sample = tmp_path / "sample.csv"
    sample.write_text("id,x\ntest-00000,0\n")
    assert "not in" in refused(
        "--runs", runs, "--sample-submission", sample, *quick
    )
    logits, labels = made_up(160, 3, 1, seed=0)
    write_run(
        three_runs / "other", (logits[0], labels), classes=("x", "y", "z")
    )
    assert "other classes" in refused("--runs", runs, *quick)
    assert not out.exists()


def test_planted_leak_is_refused_unless_waved_through(tmp_path):
    logits, labels = made_up(600, 4, 3, seed=0)
    logits[1, np.arange(300), labels[:300]] += 3
    for index in range(3):
        write_run(
            tmp_path / "runs" / f"run{index}",
            (logits[index, :300], labels[:300]),
            (logits[index, 300:], np.full(300, -1, np.int32)),
        )
    call_with = (
        *("--runs", f"{tmp_path}/runs/*", "--out", tmp_path / "out"),
        *("--boosters", "none", "--trials", 5),
    )
    message = refused(*call_with)
    assert "run1 has seen its validation rows" in message
    call(*call_with, "--no-leak-check")


@pytest.mark.parametrize(
    "option", [("--seed", "-5"), ("--search", "soon"), ("--threads", "0")]
)
def test_numbers_that_are_none(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--runs", "x", "--out", "y", *option])
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {option[0]}: '{option[1]}' is no number from" in said


@pytest.mark.parametrize(
    ("command", "option"), [((), "--out"), (("predict",), "--stack")]
)
def test_no_stack_is_kept_in_a_bucket(command, option, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--runs", "x", f"{option}=gs://b/x"])
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {option}: gs://b/x is in a bucket" in said


def test_unknown_booster():
    found = call("--runs", "x", "--out", "y", "--boosters", "xg", code=2)
    assert "catboost, lightgbm and none, not xg" in found.stderr


def test_no_jax_no_pipeline_and_no_framework_is_imported():
    code = (
        "import sys, stacking.__main__\n"
        "for name in ('jax', 'flax', 'grain', 'input_pipeline',"
        " 'jax_models', 'training', 'ml_collections'):\n"
        "    assert name not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def quick(out, *runs):
    return (
        *("--runs", *runs, "--out", out),
        *("--boosters", "none", "--trials", 5),
    )


@pytest.mark.parametrize("where", ["file", "file/below", "/proc/stack"])
def test_out_that_cannot_be_written_is_told_before_the_work(
    three_runs, tmp_path, where
):
    (tmp_path / "file").write_text("mine")
    started = time.monotonic()
    message = refused(
        # With boosters the fit alone would take longer than this.
        *("--runs", f"{three_runs}/*", "--out", tmp_path / where),
        *("--trials", 100_000),
    )
    assert time.monotonic() - started < 30
    assert "is a file" in message or "cannot be written" in message
    assert (tmp_path / "file").read_text() == "mine"


def test_a_second_stack_leaves_nothing_of_the_first(three_runs, tmp_path):
    out = tmp_path / "out"
    call(*quick(out, f"{three_runs}/*"))
    assert (out / "submission.csv").exists()
    (out / "boosters").mkdir()
    (out / "boosters" / "lightgbm_0.txt").write_text("of the first")
    (out / "boosters" / "mine").write_text("mine")
    (out / "notes.txt").write_text("mine")
    for name in ("first", "second", "third"):
        (three_runs / name / "logits" / "test.npz").unlink()
    found = call(*quick(out, f"{three_runs}/*"))
    assert "submission.csv is not of this stack and is removed" in found.stderr
    assert {path.name for path in out.rglob("*")} == {
        *("stack.npz", "scores.json", "stack.json", "report.html"),
        *("notes.txt", "boosters", "mine"),
    }


def test_someone_elses_submission_is_not_removed(tmp_path):
    logits, labels = made_up(80, 4, 2, seed=0)
    for index, name in enumerate("ab"):
        write_run(tmp_path / "runs" / name, (logits[index], labels))
    (tmp_path / "submission.csv").write_text("mine")
    found = call(*quick(tmp_path, f"{tmp_path}/runs/*"))
    assert "so it stays" in found.stderr
    assert (tmp_path / "submission.csv").read_text() == "mine"


def interrupted(started, out, arguments):
    """Ctrl-C once `started` stands on stderr; returns what else it said."""
    with subprocess.Popen(
        [
            # Tests started in the background have inherited that it is
            # ignored.
            "env",
            "--default-signal=INT",
            sys.executable,
            "-m",
            "stacking",
            *map(str, arguments),
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stderr:
            if started in line:
                break
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        stopped = time.monotonic()
        try:
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()  # It would hold the tests up with a million trials.
        assert process.returncode == 130
        # Not when the fits under way have come to their end.
        assert time.monotonic() - stopped < 5
    return said


def test_ctrl_c_leaves_the_earlier_stack_as_it_was(three_runs, tmp_path):
    out, runs = tmp_path / "out", f"{three_runs}/*"
    call(*quick(out, runs))
    before = {path: path.read_bytes() for path in out.iterdir()}
    said = interrupted(
        "fold 1/5",
        out,
        ("--runs", runs, "--out", out, "--trials", 1_000_000),
    )
    assert said.strip().endswith("stopped by Ctrl-C")
    assert "Traceback" not in said
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    interrupted(
        "fold 1/5",
        out,
        ("--runs", runs, "--out", tmp_path / "new", "--trials", 1_000_000),
    )
    assert not (tmp_path / "new").exists()


def test_what_strangers_get_wrong(three_runs, tmp_path):
    """Each is one sentence that names the culprit."""
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    assert "holds logits/val.npz" in refused(*quick(out, tmp_path / "empty"))
    assert "does not exist" in refused(*quick(out, f"{tmp_path}/nothing*"))
    twice = ("--runs", f"{tmp_path}/nothing*", *quick(out, f"{three_runs}/*"))
    assert "does not exist" in refused(
        *twice
    )  # Neither takes the other's place.
    sample = tmp_path / "no.csv"
    assert f"{sample} does not exist; set --sample-submission" in refused(
        *quick(out, f"{three_runs}/*"), "--sample-submission", sample
    )
    path = three_runs / "second" / "logits" / "val.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["logits"][3] = np.nan
    np.savez(path, **arrays)
    assert "not finite, the first is id 'val-00003'" in refused(
        *quick(out, f"{three_runs}/*")
    )
    arrays["logits"][3] = 0
    arrays["ids"][4] = arrays["ids"][5]
    np.savez(path, **arrays)
    assert f"{path}: id 'val-00005' occurs twice" in refused(
        *quick(out, f"{three_runs}/*")
    )
    path.write_bytes(b"PK\x03\x04 and no more")
    assert f"{path} cannot be read as a logits file" in refused(
        *quick(out, f"{three_runs}/*")
    )
    assert not out.exists()


def test_search_storage_that_is_none(three_runs, tmp_path):
    storage = tmp_path / "search.journal"
    storage.write_text("no journal\n")
    arguments = (
        *("--runs", f"{three_runs}/*", "--out", tmp_path / "out"),
        *("--trials", 5, "--boosters", "lightgbm", "--search", 6),
        *("--search-storage", storage),
    )
    assert f"search storage {storage} cannot be used" in refused(*arguments)
