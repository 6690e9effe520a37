"""Machines that train in a bucket, which is a folder seen by fsspec."""

import shutil

from training.multihost.lease import LEASE_FILE
from training.multihost.mirror import MANIFEST, Mirror
from training.multihost.object_store import Disk
from training.multihost.run_files import list_files, progress


class Machine:
    """A machine that trains in the bucket, and may be lost."""

    def __init__(self, folder, name="one"):
        self.bucket = folder / "bucket/run"
        self.local = folder / name / "run"

    def begins(self):
        return Mirror(f"file://{self.bucket}", self.local)

    def train(self, step, mark=""):
        """Leaves what a checkpoint at `step` leaves, and only that."""
        for old in (self.local / "checkpoints").glob("*"):
            shutil.rmtree(old)
        folder = self.local / f"checkpoints/{step}"
        folder.mkdir(parents=True)
        (folder / "arrays").write_text(f"arrays {step}{mark}")
        (folder / "state/d").mkdir(parents=True)
        (folder / "state/d/.part").write_text(f"more {step}{mark}")
        with open(self.local / "metrics.jsonl", "a") as log:
            log.write(f"{step}\n")

    def newest(self):
        return progress(list_files(self.local))

    def arrays(self):
        return (self.local / f"checkpoints/{self.newest()}/arrays").read_text()


def content(folder):
    """{path: bytes} of the run's files in a folder."""
    names = list_files(folder).keys() - {MANIFEST, LEASE_FILE}
    return {name: (folder / name).read_bytes() for name in names}


def another(one):
    return Machine(one.local.parents[1], "other")


def silenced(kept):
    """What SIGKILL leaves of a run."""
    kept._over.set()
    kept._lease._released.set()
    kept._lease._thread.join()
    kept._lock.close()


SENDING = [(Disk, name) for name in ("put_file", "pipe_file", "rm")]


class Died(BaseException):
    """In place of SIGKILL."""


class Dying:
    """Lets a number of operations through; the next one dies."""

    def __init__(self, monkeypatch, operations, counted=SENDING):
        self.left = operations
        for owner, name in counted:
            original = getattr(owner, name)
            monkeypatch.setattr(owner, name, self._counted(original))

    def _counted(self, original):
        def counted(*arguments, **named):
            if not self.left:
                raise Died
            self.left -= 1
            return original(*arguments, **named)

        return counted
