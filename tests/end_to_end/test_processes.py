"""Two train.py processes as one training: stopped, killed, resumed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from http import HTTPStatus

import numpy as np
import pytest
from commands import CACHE, HASTY, ROOT, records
from masked_pictures import write_data as write_masks
from PIL import Image

from core.paths import make_path
from run_folder.predictions import read_logits
from tests.several_processes import free_address

# Two stages, eight evaluations, 30 steps of a tiny model.
SHORT = (
    f"--config={ROOT}/tests/end_to_end/tiny_recipe.py",
    "--config.epochs=0.35",
)


class Team:
    """Processes of train.py, each on `devices` devices of this CPU.

    Each simulates a machine of its own: its cache and its working directory
    are folders of its own below `machines`; `workdir` they share.
    """

    def __init__(self, machines, workdir, count, devices, *arguments):
        flags = f"--xla_force_host_platform_device_count={devices} {HASTY}"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        environment |= {"XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"}
        environment["PYTHONPATH"] = str(ROOT)
        command = [sys.executable, ROOT / "train.py", f"--workdir={workdir}"]
        command += SHORT
        meeting = f"--coordinator={free_address()}"
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

    def wait_for(self, condition, seconds=300):
        """Returns when it is true; all processes live until then."""
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, self.said(0)
            codes = [process.poll() for process in self.processes]
            assert codes == [None] * len(codes), (self.said(0), codes)
            time.sleep(0.002)

    def wait_for_records(self, workdir, count, seconds=900):
        """Returns when more than `count` records are logged."""
        path = workdir / "metrics.jsonl"
        self.wait_for(
            lambda: path.exists() and path.read_bytes().count(b"\n") > count,
            seconds,
        )


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


SPLIT = "--config.mesh.fsdp=-1"  # Over all devices of all processes.


class Steps:
    """What the checkpoints of a run look like from outside."""

    def __init__(self, workdir):
        self._folder = workdir / "checkpoints"

    def names(self):
        """Paths of all files in the folder, of any checkpoint."""
        return [
            path.relative_to(self._folder).as_posix()
            for path in self._folder.rglob("*")
        ]

    def saving(self):
        """Some process is writing."""
        return any("-tmp/state/ocdbt.process_" in name for name in self.names())

    def one_saves(self):
        """One of two has written its data, the other one has not."""
        done = {
            re.search(r"process_\d", name)[0]
            for name in self.names()
            if re.search(r"-tmp/state/ocdbt.process_\d/manifest", name)
        }
        return len(done) == 1

    def committed(self):
        """A second one is whole, and the older one about to be deleted."""
        return sum(name.isdigit() for name in self.names()) > 1


@pytest.mark.slow
def test_killed_at_any_moment_and_moved_between_layouts(alone, tmp_path):
    """One or both killed, then grown from 2 to 1 and from 1 to 2."""
    workdir = tmp_path / "run"
    steps = Steps(workdir)
    kills = (("saving", 1), ("one_saves", 0), ("committed", 1))
    for number, (moment, victim) in enumerate(kills):
        team = Team(tmp_path / str(number), workdir, 2, 2, SPLIT)
        # What the kill before has left is gone by then.
        team.wait_for(lambda team=team: "stage" in team.said(0))
        team.wait_for(getattr(steps, moment))
        team.processes[victim].kill()
        other = team.processes[1 - victim]
        began = time.monotonic()
        code = other.wait(timeout=100)
        assert time.monotonic() - began < 60
        if victim:  # Else JAX may end it first, with a page of C++.
            assert code == 75, team.said(0)
            (message,) = team.errors(0)
            assert "another of the 2 processes has gone" in message
        assert code != 0

    team = Team(tmp_path / "one", workdir, 1, 4)
    team.wait_for_records(workdir, len(records(workdir)))
    team.processes[0].send_signal(signal.SIGTERM)
    assert team.wait() == [143], team.said(0)

    team = Team(tmp_path / "two", workdir, 2, 2, SPLIT)
    team.wait_for_records(workdir, len(records(workdir)))
    team.processes[1].send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert team.wait() == [143, 143], team.said(0) + team.said(1)
    assert time.monotonic() - began < 60  # 25 s on a machine at rest.
    stopped = re.search(r"stopped at step (\d+)", team.said(0))
    assert stopped, team.said(0)

    team = Team(tmp_path / "end", workdir, 2, 2, SPLIT)
    assert team.wait() == [0, 0], team.said(0)
    assert f"at step {stopped[1]}" in team.said(0)
    assert "stage" not in team.said(1), "process 1 must not print"
    assert_same_run(workdir, alone)
    # Both wrote what their devices hold, into the one folder.
    written = workdir.glob("checkpoints/*/state/ocdbt.process_1/d/*")
    assert sum(path.stat().st_size for path in written) > 2**16
    left = {path.name for path in workdir.iterdir()}
    assert left == {path.name for path in alone.iterdir()}


@pytest.mark.slow
def test_a_burst_to_every_process_is_one_wish(tmp_path):
    """A scheduler signals all of them, and some twice."""
    workdir = tmp_path / "run"
    team = Team(tmp_path / "hosts", workdir, 2, 1, "--config.epochs=20")
    team.wait_for_records(workdir, 2)
    for _ in range(4):
        for process in team.processes:
            process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    assert team.wait() == [143, 143], team.said(0) + team.said(1)
    assert "stopped at step" in team.said(0)
    assert len(list((workdir / "checkpoints").iterdir())) > 0


@pytest.mark.slow
def test_two_processes_in_a_bucket_resume_as_one(alone, bucket, url, tmp_path):
    """Killed while one of them saves; the bucket slow, with some 503s."""
    workdir = make_path(url)

    def fault(method, path):
        late = "ocdbt.process_1" in path and method == "POST"
        bucket.failed += 1
        return (
            HTTPStatus.SERVICE_UNAVAILABLE
            if bucket.failed % 41 == 0
            else (0.5 if late else 0.01)
        )

    bucket.failed, bucket.fault = 0, fault
    prefix = url.removeprefix(f"{bucket.url}/")

    def one_saves():
        names = bucket.names(f"{prefix}/checkpoints")
        return (
            sum(name.endswith("process_0/manifest.ocdbt") for name in names)
            > sum(name.endswith("process_1/manifest.ocdbt") for name in names)
            > 0
        )

    team = Team(tmp_path / "first", url, 2, 2, SPLIT)
    team.wait_for(one_saves)
    team.processes[1].kill()
    assert team.processes[0].wait(timeout=100) == 75, team.said(0)
    team = Team(tmp_path / "second", url, 2, 2, SPLIT)
    assert team.wait() == [0, 0], team.said(0)
    assert_same_run(workdir, alone)


@pytest.mark.slow
def test_hosts_that_share_no_folder_are_refused(tmp_path):
    team = Team(tmp_path, "run", 2, 1)  # Relative: each in a folder of its own.
    assert team.wait() == [2, 2], team.said(0)
    for index in (0, 1):
        (message,) = team.errors(index)
        assert "is not the folder that process 0 writes to" in message
    assert not (tmp_path / "1/run").exists()


def test_an_error_in_one_process_is_reported_by_all(tmp_path):
    (tmp_path / "run").write_text("")  # Process 0 alone opens it.
    team = Team(tmp_path / "hosts", tmp_path / "run", 2, 1)
    assert team.wait() == [2, 2], team.said(0)
    for index in (0, 1):
        (message,) = team.errors(index)
        assert "cannot write the run folder" in message


@pytest.mark.slow
def test_two_processes_export_the_masks_of_one(tmp_path):
    """In windows and two scales: all must load the same batches in turn."""
    write_masks(tmp_path / "data")
    runs = []
    for count, devices in ((1, 2), (2, 1)):
        folder = tmp_path / f"{count}"
        team = Team(
            *(folder, folder / "run", count, devices),
            f"--config={ROOT}/tests/end_to_end/segmentation_recipe.py",
            "--config.epochs=2",
            f"--config.data.root={tmp_path / 'data'}",
            "--config.segment.windows=0.5",
            "--config.segment.probabilities=True",
            "--config.eval.tta=('whole','flip@0.75')",
        )
        assert team.wait() == [0] * count, team.said(0)
        runs.append(folder / "run")
    masks = sorted(
        path.relative_to(runs[0]) for path in runs[0].glob("masks/*/*.png")
    )
    assert len(masks) == 8
    for name in masks:
        ours, theirs = (np.asarray(Image.open(run / name)) for run in runs)
        assert (ours != theirs).mean() < 0.02, name
    for run in runs:
        files = json.loads((run / "artifacts.json").read_text())["files"]
        assert len(files) == 17  # And the counts of the validation.


@pytest.mark.slow
def test_a_mask_that_cannot_be_written_ends_both_processes(tmp_path):
    write_masks(tmp_path / "data")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/masks").write_text("in the way")
    team = Team(
        *(tmp_path / "machines", tmp_path / "run", 2, 1),
        f"--config={ROOT}/tests/end_to_end/segmentation_recipe.py",
        "--config.epochs=1",
        f"--config.data.root={tmp_path / 'data'}",
    )
    assert team.wait() == [2, 2]
    for index in range(2):
        (told,) = team.errors(index)
        assert "cannot write" in told and "masks" in told
