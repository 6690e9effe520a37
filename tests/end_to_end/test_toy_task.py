"""A task of one file and a recipe has all that the built-in ones have."""

import json
import os
import signal
import time

import commands
import numpy as np
import pytest

HERE = commands.ROOT / "tests/end_to_end"
RECIPE = f"--config={HERE / 'toy_recipe.py'}"


@pytest.fixture(autouse=True)
def toy_is_importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE))


def words(workdir, *arguments):
    cache = f"--config.cache_dir={commands.CACHE}"
    return ["train.py", RECIPE, cache, f"--workdir={workdir}", *arguments]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("toy") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE))
        done = commands.run(*words(workdir))
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_no_file_but_its_own_two_knows_it():
    tracked = [
        path
        for path in commands.ROOT.rglob("*")
        if path.suffix in (".py", ".md", ".toml", ".ini")
        and not {".venv", "runs", ".git"} & set(path.parts)
    ]
    naming = {path.name for path in tracked if "mean_colour" in read(path)}
    assert naming == {"toy_task.py", "toy_recipe.py", "test_toy_task.py"}


def read(path):
    return path.read_text(encoding="utf-8", errors="replace")


def test_it_trains_exports_and_gets_a_report(whole):
    workdir, stdout = whole
    scores = [
        record["val_error"]
        for record in commands.records(workdir)
        if record["kind"] == "eval"
    ]
    assert min(scores) < scores[0]
    assert "colours of" in stdout
    manifest = json.loads((workdir / "artifacts.json").read_text())
    assert list(manifest["files"]) == ["colours.npz"]
    found = np.load(workdir / "colours.npz")
    assert found["colour"].shape == (len(found["ids"]), 3)
    report = (workdir / "report.html").read_text()
    assert "Colours" in report
    assert f"of {len(found['ids'])} images" in report


def test_killed_and_run_again_it_comes_to_the_same_bits(whole, tmp_path):
    workdir = tmp_path / "run"
    with open(tmp_path / "out", "w") as output:
        process = commands.in_background(
            commands.command(*words(workdir)), output
        )
    log = workdir / "metrics.jsonl"
    end = time.monotonic() + 120
    while not log.exists() or log.read_text().count('"eval"') < 2:
        assert process.poll() is None, (tmp_path / "out").read_text()
        assert time.monotonic() < end
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (workdir / "artifacts.json").exists()
    again = commands.run(*words(workdir))
    assert again.returncode == 0, again.stderr
    assert log.read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    for name, values in np.load(workdir / "colours.npz").items():
        expected = np.load(whole[0] / "colours.npz")[name]
        np.testing.assert_array_equal(values, expected)


WRONG = {
    "mean_colour.wdith=4": "did you mean config.mean_colour.width",
    "mean_colour.width=1": "mean_colour.width is 1: take 2 or more",
    "mean_colour.width=5": "mean_colour.width is 5: it is odd",
    "stages[0].focal_gamma=1.0": "no effect on the mean_colour task",
    "checkpoint.metric=val_loss": "the mean_colour task has val_error",
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """(code, what was said) of each, from one process, and its folder."""
    workdir = tmp_path_factory.mktemp("wrong") / "run"
    calls = [words(workdir, f"--config.{field}")[1:] for field in WRONG]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE))
        done = commands.run("-c", commands.ONE_BY_ONE, json.dumps(calls))
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return dict(zip(WRONG, answers, strict=True)), workdir


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_field_is_refused_in_one_sentence(refusals, field):
    code, said = refusals[0][field]
    assert code == 2
    assert WRONG[field] in said
    assert said.count("\n") == 1
    assert not refusals[1].exists()


def test_a_plan_writes_nothing_but_itself(tmp_path):
    done = commands.run(*words(tmp_path / "run", "--plan"))
    assert done.returncode == 0, done.stderr
    assert "mean_colour loss" in done.stdout
    assert "FLOPs" in done.stdout
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["plan.html"]


def test_all_folds_are_trained_and_joined(tmp_path):
    workdir = tmp_path / "all"
    short = ("--config.data.folds=2", "--config.epochs=0.3", "--all-folds")
    done = commands.run(*words(workdir, *short))
    assert done.returncode == 0, done.stderr
    assert "2 models in" in done.stdout
    for fold in range(2):
        assert (workdir / f"fold-{fold}/colours.npz").exists()
    assert (workdir / "report.html").exists()


def test_a_run_predicts_photos(whole, tmp_path):
    commands.write_competition(tmp_path / "photos", tests=2)
    photos = str(tmp_path / "photos/img_test")
    script = (
        "import sys, toy_task, predict; sys.exit(predict.main(sys.argv[1:]))"
    )
    arguments = ("--run", str(whole[0]), photos, "--format", "json")
    done = commands.run("-c", script, *arguments)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [len(record["colour"]) for record in found] == [3, 3]
