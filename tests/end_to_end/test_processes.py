"""Two train.py processes as one training: read, write, stop, die, go on."""

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

from stacking.logits import read_logits

SHORT = (
    "--config=configs/miniconvnext.py:demo",
    "--config.epochs=2",
    "--config.eval.every_epochs=0.5",
    "--config.log_every_steps=3",
    f"--config.cache_dir={CACHE}",
)


class Team:
    """A train.py on `devices` devices of this CPU in each of some processes."""

    def __init__(self, workdir, count, devices, *arguments):
        flags = f"--xla_force_host_platform_device_count={devices}"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        environment |= {"XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "train.py", f"--workdir={workdir}", *SHORT]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meeting = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
        self.outputs = [f"{workdir}.{index}.out" for index in range(count)]
        self.processes = []
        for index, path in enumerate(self.outputs):
            peers = ()
            if count > 1:
                peers = (meeting, f"--num-processes={count}")
                peers += (f"--process-id={index}",)
            with open(path, "w") as output:
                self.processes.append(
                    subprocess.Popen(
                        [*command, *peers, *arguments],
                        cwd=ROOT,
                        env=environment,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )

    def wait(self, seconds=900):
        """Returns the exit codes."""
        return [process.wait(timeout=seconds) for process in self.processes]

    def said(self, index):
        with open(self.outputs[index]) as output:
            return output.read()

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
    """The run folder of one process with eight devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    team = Team(workdir, 1, 8)
    assert team.wait() == [0], team.said(0)
    return workdir


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


@pytest.mark.slow
def test_killed_and_stopped_two_processes_end_where_one_does(alone, tmp_path):
    workdir = tmp_path / "run"
    team = Team(workdir, 2, 4)
    team.wait_for_records(workdir, 4)
    team.processes[1].kill()
    assert team.processes[0].wait(timeout=300) == 75
    told = [x for x in team.said(0).splitlines() if x.startswith("error:")]
    assert len(told) == 1 and "another of the 2 processes has gone" in told[0]
    assert "Traceback" not in team.said(0)

    done = len(records(workdir))
    team = Team(workdir, 2, 4)
    team.wait_for_records(workdir, done)
    team.processes[1].send_signal(signal.SIGTERM)
    assert team.wait() == [143, 143]
    stopped = re.search(r"stopped at step (\d+)", team.said(0))
    assert stopped, team.said(0)

    team = Team(workdir, 2, 4)
    assert team.wait() == [0, 0], team.said(0)
    assert f"at step {stopped[1]}" in team.said(0)
    assert "stage" not in team.said(1), "process 1 is not to speak"
    assert_same_run(workdir, alone)


def test_what_only_one_process_finds_wrong_all_of_them_tell(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "fold-0").mkdir()  # Process 0 alone looks at the folder.
    team = Team(workdir, 2, 1)
    assert team.wait() == [2, 2]
    for index in (0, 1):
        assert "holds a run over all folds" in team.said(index)
