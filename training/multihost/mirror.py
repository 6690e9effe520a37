"""A run folder in a bucket: a local folder, and the bucket kept equal to it.

Nothing in a bucket can be appended to, locked or renamed. So a run works in a
local folder, and what is new is sent after each checkpoint, in the background,
and at the end. Beside the run's files, under their own names, there lie

    sent.json    which files are the run's; written when all of them are there
    owner.json   who sends there; see `lease`

What `sent.json` does not list does not count, and what it listed is deleted
only after the next one is written: a process that is killed while it sends
leaves the checkpoints of the last list, as they were. All other files (log,
logits, report, config) are written over in place, and may then be newer than
the list; a run that goes on cuts its log, and writes the others anew. So may a
checkpoint that was trained once more up to the same step: its own checksums
tell whether it is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from core import atomic_files
from core.errors import TransientError, UserError
from run_folder import layout
from training.multihost import coordinated_shutdown, lease
from training.multihost.object_store import Bucket, writing
from training.multihost.run_files import (
    CHECKPOINT,
    OURS,
    Files,
    checkpoints,
    in_folders,
    list_files,
    progress,
)

MANIFEST = "sent.json"

SECONDS_BETWEEN_LOOKS, SECONDS_BETWEEN_TRIALS = 1.0, 15.0

# What the local folder remembers of the bucket.
_RECORD = ".bucket.json"


class FolderChangedError(TransientError):
    """Checkpoints came or went while they were looked at."""


class Mirror:
    """Keeps a bucket equal to a local run folder; a context manager.

    Entering brings the local folder up to date, or refuses. Leaving sends
    what was not sent, also after an error.

    Args:
      url: of the folder in the bucket.
      local: the run folder (`object_store.local_copy`).
    """

    def __init__(self, url: str, local: Path):
        self._bucket, self._local = Bucket(url), local
        self._lease = lease.Lease(self._bucket)
        self._run = ""  # Names the run on any machine.
        self._sent: Files = {}  # As they were when they were sent.
        self._there: set[str] = set()  # What may lie there, of any age.
        self._lists: set[str] = set()  # The last one there is one of these.
        self._reached = 0  # The progress of that one.
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_sending, daemon=True)

    def __enter__(self) -> Mirror:
        """Fetches what is newer there.

        Raises:
          UserError: the bucket does not answer, another run is using it, or
            it holds another run than the local folder.
        """
        self._lock = _lock(self._local)
        try:
            self._begin()
        except BaseException:
            self._release()
            raise
        print(f"{self._bucket.url} is kept equal to {self._local}", flush=True)
        self._thread.start()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        """Sends the rest.

        Raises:
          UserError: it cannot; the next start does.
        """
        self._over.set()
        self._thread.join()
        try:
            self.send()
            print(f"all is in {self._bucket.url}, and here in {self._local}")
        except UserError as failed:
            text = f"{failed}; all that was trained is in {self._local}"
            if error is None:
                raise type(failed)(text) from failed
            print(f"error: {text}", file=sys.stderr)
        finally:
            self._release()

    def send(self) -> None:
        """Sends what is new, then lists it there, then deletes what is gone.

        Raises:
          LeaseLostError: another run has taken over the bucket's folder.
          TransientError: checkpoints came or went meanwhile
            (FolderChangedError), the bucket does not answer, or it has a later
            checkpoint: those here were corrupt and are being trained again.
          UserError: it cannot be sent.
        """
        self._check_lease()
        here = list_files(self._local)
        if progress(here) < self._reached:
            raise TransientError(
                f"{self._bucket.url} has a later checkpoint than {self._local};"
                " run the same command again"
            )
        new = [name for name in here if here[name] != self._sent.get(name)]
        gone = self._there - here.keys()
        if not new and not gone:
            return
        with (
            writing(self._local),
            atomic_files.temporary_folder(self._local, ".sending-") as staged,
        ):
            self._stage(new, staged)
            if checkpoints(list_files(self._local)) != checkpoints(here):
                raise FolderChangedError(
                    f"{self._local} changes while it is sent"
                )
            self._there.update(new)
            self._bucket.send(new, staged)
        self._check_lease()
        sent = self._list(here)
        self._sent = here
        self._remember(sent)
        self._bucket.delete(in_folders(gone, here))
        self._there = set(here)

    def _check_lease(self) -> None:
        """Refuses to write where another run has, even if it has ended."""
        self._lease.renew()
        listed = self._bucket.read(MANIFEST) or {}
        if listed.get("sent") not in self._lists:
            raise self._lease.lost()

    def _begin(self) -> None:
        for half in self._local.glob(".sending-*"):
            shutil.rmtree(half, ignore_errors=True)
        if self._bucket.read(MANIFEST) is None:
            strange = self._bucket.top() - {lease.LEASE_FILE}
            # Hidden is what a disk keeps of a file that was being written.
            strange = {name for name in strange if name[0] != "."}
            if strange:
                raise UserError(
                    f"{self._bucket.url} holds {min(strange)} and no run; "
                    "choose an empty --workdir"
                )
        known = _remembered(self._local)
        # The last process here has ended: it would hold the lock.
        self._lease.acquire(ended=known.get("owner", ""))
        # Only now: others may have sent until a moment ago.
        listed = self._bucket.read(MANIFEST)
        here = list_files(self._local)
        if listed is None:
            self._run = known.get("run") or secrets.token_hex(8)
            if progress(here):
                print(f"{self._bucket.url} is empty; the run here goes on")
            self._remember(self._list([]))
            return
        _check_list(self._bucket, listed)
        self._run = listed["run"]
        if _is_behind(self._local, listed, self._bucket):
            _fetch(self._bucket, listed, self._local)
        known = _remembered(self._local)
        same = known.get("sent") == listed["sent"]
        self._sent = known["files"] if same else {}
        self._lists.add(listed["sent"])
        self._reached = progress(listed["files"])
        # Also what was half sent, or should have been deleted.
        strays = filter(CHECKPOINT.match, self._bucket.names())
        self._there = {*listed["files"], *strays}
        self._remember(listed["sent"] if same else "")

    def _release(self) -> None:
        self._lease.release()
        self._lock.close()

    def _keep_sending(self) -> None:
        before, wait, told = None, SECONDS_BETWEEN_LOOKS, False
        while not self._over.wait(wait):
            wait = SECONDS_BETWEEN_LOOKS
            # Twice the same: none is just being renamed or deleted.
            now = checkpoints(list_files(self._local))
            still, before = now == before, now
            if not still or now == checkpoints(self._sent):
                continue
            try:
                self.send()
                told = False
            except lease.LeaseLostError as lost:
                coordinated_shutdown.shutdown(lost)
            except FolderChangedError:
                before = None
            except UserError as error:
                wait = SECONDS_BETWEEN_TRIALS
                if not told:
                    print(
                        f"not sent: {error} (training goes on, and sending is "
                        "tried again)",
                        file=sys.stderr,
                        flush=True,
                    )
                told = True

    def _stage(self, names: list[str], folder: Path) -> None:
        """Holds files as they are now: Orbax deletes some, the log grows."""
        try:
            for name in names:
                source, target = self._local / name, folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if not (CHECKPOINT.match(name) and _linked(source, target)):
                    shutil.copyfile(source, target)
        except FileNotFoundError as error:
            raise FolderChangedError(
                f"{self._local} changes while it is sent"
            ) from error

    def _list(self, names: Iterable[str]) -> str:
        """Writes which files are the run's; returns what names the list."""
        sent = secrets.token_hex(8)
        content = {"run": self._run, "sent": sent, "files": sorted(names)}
        # It may be there even if the answer is lost.
        self._lists.add(sent)
        self._reached = progress(content["files"])
        self._bucket.write(MANIFEST, content)
        self._lists = {sent}
        return sent

    def _remember(self, sent: str) -> None:
        record = {"run": self._run, "sent": sent, "files": self._sent}
        _write_record(self._local, {**record, "owner": self._lease.id})


def fetch_beside(url: str, local: Path, names: Iterable[str]) -> None:
    """Fetches runs that this one starts or learns from, if newer there.

    Args:
      url: of this run.
      local: its folder.
      names: of other runs; bare ones lie beside this one, in the bucket as
        here, and all others are left alone.

    Raises:
      UserError: the bucket does not answer, or holds another run.
    """
    begun = progress(list_files(local))
    for name in names:
        if name in ("", ".", "..") or "/" in name:
            continue
        beside = local.with_name(name)
        # A run that has begun goes on with the weights that it began with.
        if not (begun and _remembered(beside).get("sent")):
            _catch_up(Bucket(f"{url.rpartition('/')[0]}/{name}"), beside)


def _catch_up(bucket: Bucket, local: Path) -> None:
    """Fetches what is newer there; another process here may be doing so."""
    told = False
    while True:
        listed = bucket.read(MANIFEST)
        if listed is None:
            return
        _check_list(bucket, listed)
        if not _is_behind(local, listed, bucket):
            return
        with contextlib.suppress(layout.InUse), _lock(local):
            # Nobody else fetches now; it may have been done by now.
            if _is_behind(local, listed, bucket):
                _fetch(bucket, listed, local)
            return
        if not told:
            print(f"waiting for another process to fetch {bucket.url}")
        told = True
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _is_behind(local: Path, listed: dict[str, Any], bucket: Bucket) -> bool:
    """Whether a local folder is to be replaced by what is listed.

    Raises:
      UserError: they are of different runs.
    """
    known, here = _remembered(local), progress(list_files(local))
    if here and known.get("run") != listed["run"]:
        raise UserError(
            f"{bucket.url} holds another run than {local}; move or delete one "
            "of them, or choose another --workdir"
        )
    ahead = progress(listed["files"]) - here
    same = known.get("sent") == listed["sent"]
    return ahead > 0 or (ahead == 0 and not same)


def _fetch(bucket: Bucket, listed: dict[str, Any], local: Path) -> None:
    """Replaces a local run, once all that is to replace it has come.

    At whatever moment it is killed, the folder is `_is_behind`: it remembers
    no list, and its checkpoints are some of the old, or some of the new ones.
    What else lies there stays.
    """
    arriving = local.with_name(f".{local.name}.arriving")
    shutil.rmtree(arriving, ignore_errors=True)
    with atomic_files.temporary_path(arriving), writing(local.parent):
        bucket.fetch(listed["files"], arriving)
        record = {"run": listed["run"], "sent": "", "files": {}}
        _write_record(local, record)
        for folder in (local, *local.glob("fold-[0-9]*")):
            if (folder / "checkpoints").exists():
                shutil.rmtree(folder / "checkpoints")
        for name in list_files(local):
            (local / name).unlink()
        for name in listed["files"]:
            (local / name).parent.mkdir(parents=True, exist_ok=True)
            (arriving / name).rename(local / name)
        record |= {"sent": listed["sent"], "files": list_files(local)}
        _write_record(local, record)
    print(f"fetched {len(record['files'])} files from {bucket.url}", flush=True)


def _check_list(bucket: Bucket, listed: dict[str, Any]) -> None:
    """Refuses a list that is damaged, or leads out of the folder."""
    whole = {"run", "sent", "files"} <= listed.keys()
    for name in listed["files"] if whole else ():
        inside = ".." not in PurePosixPath(name).parts
        whole &= inside and OURS.fullmatch(name) is not None
    if not whole:
        raise UserError(
            f"{bucket.url}/{MANIFEST} is not what was written there; restore "
            "it, or choose another --workdir"
        )


def _remembered(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    atomic_files.write_text(folder / _RECORD, json.dumps(record))


def _lock(local: Path):
    # Beside the folder, which may be replaced.
    return layout.lock(local.with_name(f".{local.name}.lock"), local)


def _linked(source: Path, target: Path) -> bool:
    """Links a file; False where this disk has no links."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True
