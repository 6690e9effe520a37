"""train.py with its run folder in a bucket, which is a folder seen by fsspec.

SIGKILL is in test_kill.py, all that can go wrong on the way in
test_mirror_faults.py.
"""

import shutil

import pytest
from commands import CACHE
from in_process import training
from test_kill import assert_same

import train
from training.multihost import mirror
from training.multihost.object_store import Disk, local_copy


class InBucket:
    """A run in a bucket, on a machine that may be lost."""

    def __init__(self, bucket):
        self.bucket, self.url = bucket, f"file://{bucket}"
        self.local = local_copy(self.url, CACHE)

    def train(self, *arguments):
        """Returns the exit code."""
        return training(self.url, *arguments)

    def lose_machine(self):
        shutil.rmtree(self.local.parent)


@pytest.fixture
def run(tmp_path):
    run = InBucket(tmp_path / "bucket/run")
    yield run
    if run.local.parent.exists():
        run.lose_machine()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run in a plain folder."""
    workdir = tmp_path_factory.mktemp("plain") / "run"
    assert training(workdir) == 0
    return workdir


@pytest.mark.slow
def test_a_run_in_a_bucket_equals_that_in_a_folder(plain, run, capsys):
    assert run.train() == 0
    told = capsys.readouterr().out
    assert f"all is in {run.url}, and here in {run.local}" in told
    for folder in (run.local, run.bucket):
        assert_same(folder, plain)
        assert (folder / "report.html").exists()
    run.lose_machine()
    assert run.train() == 0
    assert "this run is finished" in capsys.readouterr().out
    assert_same(run.local, plain)


def test_a_bucket_that_fails_during_training_loses_nothing(
    run, capsys, monkeypatch
):
    monkeypatch.setattr(mirror, "POLL_SECONDS", 0.01)

    def refuse(*arguments, **named):
        raise ConnectionResetError("the line is down")

    with monkeypatch.context() as patch:
        patch.setattr(Disk, "put_file", refuse)
        assert run.train() == 75
        said = capsys.readouterr().err
        assert said.count("not sent: ") == 1  # Training went on.
        last = said.splitlines()[-1]
        assert last.startswith("error: ") and "the line is down" in last
        assert f"all that was trained is in {run.local}" in last
        patch.setattr(Disk, "pipe_file", refuse)
        assert run.train() == 75
        said = capsys.readouterr().err
        assert said.startswith("error: ") and len(said.splitlines()) == 1
    assert not (run.bucket / "checkpoints").exists()
    assert run.train() == 0
    assert "this run is finished" in capsys.readouterr().out
    assert_same(run.bucket, run.local)


@pytest.mark.parametrize("code", [130, 143])
def test_a_failed_upload_keeps_the_exit_code_of_a_signal(
    run, capsys, monkeypatch, code
):
    def stopped(arguments, resources):
        (arguments.workdir / "metrics.jsonl").write_text("")
        monkeypatch.setattr(Disk, "put_file", refuse)
        return code

    def refuse(*arguments, **named):
        raise ConnectionResetError("the line is down")

    monkeypatch.setattr(train, "train", stopped)
    assert run.train() == code
    assert "the line is down" in capsys.readouterr().err


@pytest.mark.slow
def test_a_plan_and_a_mistake_upload_nothing(run):
    assert run.train("--plan") == 0
    assert (run.local / "plan.html").exists()
    assert run.train("--config.sede=3") == 2
    assert not run.bucket.parent.exists()


@pytest.mark.slow
def test_all_folds_are_one_folder_in_the_bucket(run, capsys):
    command = ("--all-folds", "--config.data.folds=2")
    assert run.train(*command) == 0
    assert "out-of-fold macro-F1" in capsys.readouterr().out
    run.lose_machine()
    assert run.train(*command) == 0
    assert capsys.readouterr().out.count("this run is finished") == 2
    assert_same(run.local, run.bucket)
