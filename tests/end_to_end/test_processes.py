"""Two train.py processes as one training: stopped, killed, resumed."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import CACHE, ROOT, records

from run_folder.predictions import read_logits
from training.multihost.object_store import local_copy

# Two stages, eight evaluations, 30 steps of a tiny model.
SHORT = (
    f"--config={ROOT}/tests/end_to_end/tiny_recipe.py",
    "--config.epochs=0.35",
)


# Compiled quickly rather than well: there is next to nothing to compute.
HASTY = (
    "--xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)


class Team:
    """Processes of train.py, each on `devices` devices of this CPU.

    Each simulates a machine of its own: its cache, also of a run in a bucket,
    is a folder of its own below `machines`.
    """

    def __init__(self, machines, workdir, count, devices, *arguments):
        flags = f"--xla_force_host_platform_device_count={devices} {HASTY}"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        environment |= {"XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"}
        environment["PYTHONPATH"] = str(ROOT)
        command = [sys.executable, ROOT / "train.py", f"--workdir={workdir}"]
        command += SHORT
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meeting = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
        self.machines = [machines / str(index) for index in range(count)]
        self.processes = []
        for index, machine in enumerate(self.machines):
            peers = ()
            if count > 1:
                peers = (meeting, f"--num-processes={count}")
                peers += (f"--process-id={index}",)
            cache = machine / "cache"
            peers += (f"--config.cache_dir={cache}",)
            if not cache.exists():
                cache.mkdir(parents=True)
                # All that the machines share, to save the tests time.
                (cache / "compiled").symlink_to(CACHE / "compiled")
            with open(machine / "out", "w") as output:
                self.processes.append(
                    subprocess.Popen(
                        [*command, *peers, *arguments],
                        cwd=machine,
                        env=environment,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )

    def wait(self, seconds=900):
        """Returns the exit codes."""
        return [process.wait(timeout=seconds) for process in self.processes]

    def said(self, index):
        return (self.machines[index] / "out").read_text()

    def errors(self, index):
        """The sentences in which a process ended; no traceback."""
        lines = self.said(index).splitlines()
        assert "Traceback" not in self.said(index), self.said(index)
        return [line for line in lines if line.startswith("error:")]

    def wait_for_records(self, workdir, count, seconds=900):
        """Returns when more than `count` records are logged."""
        path, until = workdir / "metrics.jsonl", time.monotonic() + seconds
        while not path.exists() or path.read_bytes().count(b"\n") <= count:
            assert time.monotonic() < until, self.said(0)
            codes = [process.poll() for process in self.processes]
            assert codes == [None] * len(codes), (self.said(0), codes)
            time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run folder of one process with four devices."""
    folder = tmp_path_factory.mktemp("alone")
    team = Team(folder, folder / "run", 1, 4)
    assert team.wait() == [0], team.said(0)
    return folder / "run"


def assert_same_run(workdir, other):
    """The same log and logits, but for the order in which sums were taken."""
    ours, theirs = records(workdir), records(other)
    assert [(r["kind"], r["step"]) for r in ours] == [
        (r["kind"], r["step"]) for r in theirs
    ]
    for one, two in zip(ours, theirs, strict=True):
        for name in ("loss", "val_loss"):
            if name in one:
                assert one[name] == pytest.approx(two[name], rel=2e-3)
    for split in ("val", "test"):
        one = read_logits(workdir / f"logits/{split}.npz")
        two = read_logits(other / f"logits/{split}.npz")
        np.testing.assert_array_equal(one.ids, two.ids)
        np.testing.assert_allclose(one.logits, two.logits, atol=0.02)


class InBucket:
    """A run in a bucket, each start of it on machines that are new."""

    def __init__(self, folder):
        self._folder, self._starts = folder, 0
        self.bucket = folder / "bucket/run"

    def start(self, count, devices, *arguments):
        self._starts += 1
        machines = self._folder / f"start-{self._starts}"
        url = f"file://{self.bucket}"
        team = Team(machines, url, count, devices, *arguments)
        return team, local_copy(url, machines / "0/cache")

    def done(self):
        return len(records(self.bucket))


@pytest.mark.slow
def test_a_run_in_a_bucket_moves_between_hosts_and_layouts(alone, tmp_path):
    """Killed and stopped on ever new hosts that share no disk."""
    run = InBucket(tmp_path)
    team, local = run.start(2, 2)
    team.wait_for_records(local, 4)
    team.processes[1].kill()
    assert team.processes[0].wait(timeout=300) == 75
    (message,) = team.errors(0)
    assert "another of the 2 processes has gone" in message
    assert not list(team.machines[1].glob("cache/runs/**/run"))

    team, local = run.start(1, 4)
    assert "not left in order" not in team.said(0)
    team.wait_for_records(local, run.done())
    team.processes[0].send_signal(signal.SIGTERM)
    assert team.wait() == [143], team.said(0)

    split = "--config.mesh.fsdp=-1"  # Over both processes.
    team, local = run.start(2, 2, split)
    team.wait_for_records(local, run.done())
    team.processes[1].send_signal(signal.SIGTERM)
    assert team.wait() == [143, 143], team.said(0) + team.said(1)
    stopped = re.search(r"stopped at step (\d+)", team.said(0))
    assert stopped, team.said(0)

    team, local = run.start(2, 2, split)
    assert team.wait() == [0, 0], team.said(0)
    assert f"at step {stopped[1]}" in team.said(0)
    assert "stage" not in team.said(1), "process 1 must not print"
    assert_same_run(run.bucket, alone)


@pytest.mark.slow
def test_a_burst_to_every_process_is_one_wish(tmp_path):
    """A scheduler signals all of them, and some twice."""
    run = InBucket(tmp_path)
    team, local = run.start(2, 1, "--config.epochs=20")
    team.wait_for_records(local, 2)
    for _ in range(4):
        for process in team.processes:
            process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    assert team.wait() == [143, 143], team.said(0) + team.said(1)
    assert "stopped at step" in team.said(0)
    assert len(list((run.bucket / "checkpoints").iterdir())) > 0


def test_an_error_in_one_process_is_reported_by_all(tmp_path):
    run = InBucket(tmp_path)
    run.bucket.mkdir(parents=True)
    (run.bucket / "photos").mkdir()  # Process 0 alone looks there.
    team, _ = run.start(2, 1)
    assert team.wait() == [2, 2], team.said(0)
    for index in (0, 1):
        (message,) = team.errors(index)
        assert "holds photos and no run; choose an empty" in message
