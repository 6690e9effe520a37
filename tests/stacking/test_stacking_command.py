"""`python -m stacking`, as a person calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import CLASSES, made_up, write_run

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
    found = call(*arguments, code=2)
    lines = found.stderr.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in found.stderr
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
    assert low < results["test_scores"]["blend"]["macro_f1"] < high
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

    # Again with the artifact: the same file. And the stack's own folder is
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
