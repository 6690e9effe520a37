"""SIGKILL at any moment: the run resumes bit-exactly."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import CACHE, ROOT, environment

from core.paths import make_path
from run_folder.predictions import read_logits
from training.checkpointing.reader import CheckpointReader

RECIPE = f"--config={ROOT / 'tests/end_to_end/kill_recipe.py'}"


class ForkServer:
    """Processes of train.py that start fast; see fork_server.py."""

    def __init__(self):
        paths = f"{ROOT}{os.pathsep}{ROOT / 'tests/end_to_end'}"
        self._server = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/end_to_end/fork_server.py")],
            cwd=ROOT,
            env={**environment(), "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, workdir: Path, *arguments: str) -> int:
        """Starts a training, its output in `<workdir>.out`; returns its id."""
        words = [f"{workdir}.out", RECIPE, f"--workdir={workdir}"]
        words += [f"--config.cache_dir={CACHE}", *arguments]
        print(json.dumps(words), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def wait(self) -> int:
        """Returns the exit code of what was started last."""
        return int(self._server.stdout.readline())

    def close(self):
        self._server.stdin.close()
        self._server.wait(timeout=60)


@pytest.fixture(scope="module")
def server(_bucket):
    server = ForkServer()
    yield server
    server.close()


def finish(server, workdir, *arguments):
    server.start(workdir, *arguments)
    code = server.wait()
    assert code == 0, Path(f"{workdir}.out").read_text()


FOLDS = "--config.data.folds=2"


@pytest.fixture(scope="module")
def one_fold(server, tmp_path_factory):
    """A run that nobody stopped."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finish(server, workdir, FOLDS)
    return workdir


@pytest.fixture(scope="module")
def all_folds(server, tmp_path_factory):
    """All folds of a run that nobody stopped."""
    workdir = tmp_path_factory.mktemp("folds") / "run"
    finish(server, workdir, FOLDS, "--all-folds")
    return workdir


def test_the_run_covers_all_state_that_must_be_restored(one_fold):
    log = (one_fold / "metrics.jsonl").read_text()
    found = [json.loads(line) for line in log.splitlines()]
    steps = [r["step"] for r in found if r["kind"] == "train"]
    assert steps == sorted(set(steps)) and steps[-1] == 88
    assert [r["kind"] for r in found].count("rollback") == 1
    # Patience: stage 2 ends after 16 of its 44 steps.
    assert max(r["step"] for r in found if r["stage"] == 1) == 34


class Run:
    """A run that is killed again and again."""

    def __init__(self, server, workdir, generator):
        self._server, self.name, self._generator = server, workdir, generator
        self._output, self.workdir = Path(f"{workdir}.out"), workdir

    def kill_at(self, moment: str, *arguments: str) -> bool:
        """Starts it and kills it; returns False if it ended before."""
        self._output.unlink(missing_ok=True)
        lines = self._lines()
        process = self._server.start(self.name, *arguments)
        reached = getattr(self, f"_{moment}")
        while not reached(lines):
            if ended(process):
                assert self._server.wait() == 0, self._output.read_text()
                return False
            time.sleep(0.001)
        loaders = children(process)
        time.sleep(self._generator.uniform(0, 0.03))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        code = self._server.wait()
        assert code in (0, -signal.SIGKILL), self._output.read_text()
        assert_gone(loaders)
        return code != 0

    def _lines(self) -> int:
        logs = self.workdir.rglob("metrics.jsonl")
        return sum(log.read_bytes().count(b"\n") for log in logs)

    def _said(self, words: str) -> bool:
        return self._output.exists() and words in self._output.read_text()

    # Moments, asked every millisecond; `before` is what was logged before.

    def _starting(self, before):
        return self._said("recipe")

    def _step(self, before):
        return self._lines() > before + self._generator.integers(12)

    def _evaluation(self, before):
        # An evaluation follows each fourth line or so, and takes longer.
        return self._said("val_loss")

    def _checkpoint(self, before):
        return any(self.workdir.rglob("checkpoints/*-tmp"))

    def _stage(self, before):
        return self._said("stage 2 of 3: comp") or self._said("stage 3 of 3: c")

    def _export(self, before):
        return self._said("predicting with")


class BucketRun(Run):
    """The same, with its run folder in a bucket."""

    def __init__(self, server, folder, generator, bucket):
        folder.mkdir()
        super().__init__(server, folder / "run", generator)
        self._bucket = bucket
        self._prefix = f"{folder.parent.name}-{folder.name}/run"
        self.url = f"{bucket.url}/{self._prefix}"
        self.arguments = (FOLDS, f"--workdir={self.url}")
        self._before = 0

    def _saving(self, before):
        """A checkpoint is being written: it is not committed yet."""
        names = self._bucket.names(f"{self._prefix}/checkpoints/")
        found = {tuple(name.split("/")[:4]) for name in names}
        whole = {
            tuple(name.split("/")[:4])
            for name in names
            if name.endswith("/commit_success.txt")
        }
        return bool(found - whole)

    def _committed(self, before):
        """A checkpoint is whole, and perhaps an older one to be deleted."""
        names = self._bucket.names(f"{self._prefix}/checkpoints/")
        return sum(n.endswith("/commit_success.txt") for n in names) > 1

    def _any(self, before):
        self._requests = len(self._bucket.requests)
        self._before = self._before or self._requests
        if self._requests - self._before < self._generator.integers(20, 400):
            return False
        self._before = 0
        return True


MOMENTS = ("step", "checkpoint", "evaluation", "stage", "export", "starting")


def kill_often(server, folder, whole, kills, seed, *arguments):
    """Kills runs until there were so many kills; each ends as `whole` did."""
    generator = np.random.default_rng(seed)
    done, number = dict.fromkeys(MOMENTS, 0), 0
    moments = itertools.cycle(MOMENTS)
    while sum(done.values()) < kills:
        run = Run(server, folder / f"run-{number}", generator)
        number += 1
        finished = False
        while not finished and sum(done.values()) < kills:
            moment = next(moments)
            # Starting loaders takes longer than all the rest.
            workers = generator.choice(3, p=(0.7, 0.2, 0.1))
            finished = not run.kill_at(
                moment, *arguments, f"--config.workers={workers}"
            )
            done[moment] += not finished
        finish(server, run.workdir, *arguments)
        assert_same(run.workdir, whole)
    print(f"{sum(done.values())} kills in {number} runs: {done}")


def test_killed_a_few_times_it_resumes_bit_exactly(server, one_fold, tmp_path):
    kill_often(server, tmp_path, one_fold, 3, 0, FOLDS)


@pytest.mark.slow
def test_killed_repeatedly_all_folds_resume_bit_exactly(
    server, all_folds, tmp_path
):
    kill_often(server, tmp_path, all_folds, 24, 1, FOLDS, "--all-folds")


def kill_in_bucket(server, folder, whole, kills, seed, bucket):
    """Kills runs in a bucket; nothing of them is on this machine."""
    generator = np.random.default_rng(seed)
    done, number = 0, 0
    moments = itertools.cycle(("saving", "any", "export", "committed"))
    while done < kills:
        run = BucketRun(server, folder / f"run-{number}", generator, bucket)
        number += 1
        finished = False
        while not finished and done < kills:
            finished = not run.kill_at(next(moments), *run.arguments)
            done += not finished
        finish(server, run.name, *run.arguments)
        assert_same(make_path(run.url), whole)
        assert not run.name.exists()
    print(f"{done} kills in {number} runs")


def test_killed_while_it_saves_in_a_bucket_it_resumes_bit_exactly(
    bucket, server, one_fold, tmp_path
):
    kill_in_bucket(server, tmp_path, one_fold, 1, 2, bucket)


@pytest.mark.slow
def test_killed_repeatedly_in_a_bucket_it_resumes_bit_exactly(
    bucket, server, one_fold, tmp_path
):
    kill_in_bucket(server, tmp_path, one_fold, 8, 3, bucket)


def assert_same(one, other):
    """Logits, logs, and every array and history in every checkpoint."""
    assert_same_run_of_logits(one, other)
    folders = [p.relative_to(other) for p in other.rglob("checkpoints")]
    assert folders
    for name in folders:
        log = name.parent / "metrics.jsonl"
        assert (one / log).read_bytes() == (other / log).read_bytes()
        first, second = (CheckpointReader(run / name) for run in (one, other))
        assert first.steps() == second.steps()
        assert first.best() == second.best()
        for step in first.steps():
            assert first.history(step) == second.history(step)
            arrays = [dict(c._read(step, None)) for c in (first, second)]
            assert arrays[0].keys() == arrays[1].keys()
            for key, array in arrays[0].items():
                np.testing.assert_array_equal(array, arrays[1][key])


def assert_same_run_of_logits(one, other):
    files = [p.relative_to(other) for p in other.rglob("logits/*.npz")]
    assert files
    for name in files:
        a, b = read_logits(one / name), read_logits(other / name)
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.logits, b.logits)


def ended(process: int) -> bool:
    """Whether a process has ended, or is about to be waited for."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return True
    return status.rpartition(")")[2].split()[0] in "ZX"


def children(process: int) -> list[Path]:
    listed = Path(f"/proc/{process}/task/{process}/children")
    try:
        return [Path(f"/proc/{child}") for child in listed.read_text().split()]
    except OSError:
        return []


def assert_gone(processes, seconds=20):
    """No loader process outlives the training, however that ended."""
    until = time.monotonic() + seconds
    while any(p.exists() for p in processes):
        assert time.monotonic() < until, f"still there: {processes}"
        time.sleep(0.1)
