"""Mirrors a local run folder to a bucket.

Objects in a bucket cannot be appended to, locked or renamed. So a run works in
a local folder, and new files are uploaded after each checkpoint, in the
background, and at the end. Beside the run's files the bucket holds

    sent.json    the manifest of the run's files, written after all of them
    owner.json   the lease of the run that uploads; see `lease`

Files that `sent.json` does not list are ignored, and files that it listed are
deleted only after the next one is written: a process that is killed during an
upload leaves the checkpoints of the last manifest intact. All other files (log,
logits, report, config) are overwritten in place, and may then be newer than
the manifest; a resumed run truncates its log and rewrites the others. The same
holds for a checkpoint that was trained again up to the same step: its own
checksums verify it.
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
    RUN_FILE,
    Files,
    checkpoints,
    list_files,
    paths_to_delete,
    progress,
)

MANIFEST = "sent.json"

POLL_SECONDS, RETRY_SECONDS = 1.0, 15.0

# What the local folder records of the bucket.
_RECORD = ".bucket.json"


class FolderChangedError(TransientError):
    """Checkpoints were added or deleted during an upload."""


class Mirror:
    """Uploads a local run folder to a bucket; a context manager.

    Entering downloads newer files, or raises. Exiting uploads the rest, also
    after an error.

    Args:
      url: of the folder in the bucket.
      local: the run folder (`object_store.local_copy`).
    """

    def __init__(self, url: str, local: Path):
        self._bucket, self._local = Bucket(url), local
        self._lease = lease.Lease(self._bucket)
        self._run = ""  # Id of the run, the same on every machine.
        self._sent: Files = {}  # Size and mtime at the last upload.
        self._remote: set[str] = set()  # Files that may be in the bucket.
        self._manifests: set[str] = set()  # Ids; the bucket's is one of them.
        self._uploaded_progress = 0  # Of the bucket's manifest.
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_sending, daemon=True)

    def __enter__(self) -> Mirror:
        """Downloads what is newer in the bucket.

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
        """Uploads the rest.

        Raises:
          UserError: it failed; the next start uploads it.
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
        """Uploads new files, then the manifest, then deletes old files.

        Raises:
          LeaseLostError: another run has taken over the bucket's folder.
          TransientError: checkpoints came or went meanwhile
            (FolderChangedError), the bucket does not answer, or it has a later
            checkpoint: those here were corrupt and are being trained again.
          UserError: the upload failed.
        """
        self._check_lease()
        here = list_files(self._local)
        if progress(here) < self._uploaded_progress:
            raise TransientError(
                f"{self._bucket.url} has a later checkpoint than {self._local};"
                " run the same command again"
            )
        new = [name for name in here if here[name] != self._sent.get(name)]
        gone = self._remote - here.keys()
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
            self._remote.update(new)
            self._bucket.send(new, staged)
        self._check_lease()
        sent = self._write_manifest(here)
        self._sent = here
        self._record_manifest(sent)
        self._bucket.delete(paths_to_delete(gone, here))
        self._remote = set(here)

    def _check_lease(self) -> None:
        """Raises if another run has written there, even if it has ended."""
        self._lease.renew()
        listed = self._bucket.read(MANIFEST) or {}
        if listed.get("sent") not in self._manifests:
            raise self._lease.lost()

    def _begin(self) -> None:
        for half in self._local.glob(".sending-*"):
            shutil.rmtree(half, ignore_errors=True)
        if self._bucket.read(MANIFEST) is None:
            strange = self._bucket.top() - {lease.LEASE_FILE}
            # Hidden: unfinished files, where the bucket is a mounted disk.
            strange = {name for name in strange if name[0] != "."}
            if strange:
                raise UserError(
                    f"{self._bucket.url} holds {min(strange)} and no run; "
                    "choose an empty --workdir"
                )
        known = _read_record(self._local)
        # The previous process here has ended: it would hold the lock.
        self._lease.acquire(ended=known.get("owner", ""))
        # Only with the lease: until then others may upload.
        listed = self._bucket.read(MANIFEST)
        here = list_files(self._local)
        if listed is None:
            self._run = known.get("run") or secrets.token_hex(8)
            if progress(here):
                print(f"{self._bucket.url} is empty; the run here goes on")
            self._record_manifest(self._write_manifest([]))
            return
        _check_manifest(self._bucket, listed)
        self._run = listed["run"]
        if _is_behind(self._local, listed, self._bucket):
            _fetch(self._bucket, listed, self._local)
        known = _read_record(self._local)
        same = known.get("sent") == listed["sent"]
        self._sent = known["files"] if same else {}
        self._manifests.add(listed["sent"])
        self._uploaded_progress = progress(listed["files"])
        # Also from unfinished uploads and deletions.
        strays = filter(CHECKPOINT.match, self._bucket.names())
        self._remote = {*listed["files"], *strays}
        self._record_manifest(listed["sent"] if same else "")

    def _release(self) -> None:
        self._lease.release()
        self._lock.close()

    def _keep_sending(self) -> None:
        previous, wait, reported = None, POLL_SECONDS, False
        while not self._over.wait(wait):
            wait = POLL_SECONDS
            # Stable over two polls: nothing is being renamed or deleted.
            now = checkpoints(list_files(self._local))
            stable, previous = now == previous, now
            if not stable or now == checkpoints(self._sent):
                continue
            try:
                self.send()
                reported = False
            except lease.LeaseLostError as lost:
                coordinated_shutdown.shutdown(lost)
            except FolderChangedError:
                previous = None
            except UserError as error:
                wait = RETRY_SECONDS
                if not reported:
                    print(
                        f"not sent: {error} (training goes on, and sending is "
                        "tried again)",
                        file=sys.stderr,
                        flush=True,
                    )
                reported = True

    def _stage(self, names: list[str], folder: Path) -> None:
        """Links or copies files: Orbax deletes some, and the log grows."""
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

    def _write_manifest(self, names: Iterable[str]) -> str:
        """Writes the manifest; returns its id."""
        sent = secrets.token_hex(8)
        content = {"run": self._run, "sent": sent, "files": sorted(names)}
        # The write may succeed although its response is lost.
        self._manifests.add(sent)
        self._uploaded_progress = progress(content["files"])
        self._bucket.write(MANIFEST, content)
        self._manifests = {sent}
        return sent

    def _record_manifest(self, sent: str) -> None:
        record = {"run": self._run, "sent": sent, "files": self._sent}
        _write_record(self._local, {**record, "owner": self._lease.id})


def fetch_beside(url: str, local: Path, names: Iterable[str]) -> None:
    """Downloads runs that this one starts or distils from, if newer there.

    Args:
      url: of this run.
      local: its folder.
      names: of other runs. A bare name is a sibling of this run, in the bucket
        and locally; paths are ignored.

    Raises:
      UserError: the bucket does not answer, or holds another run.
    """
    begun = progress(list_files(local))
    for name in names:
        if name in ("", ".", "..") or "/" in name:
            continue
        beside = local.with_name(name)
        # A run that has begun keeps the weights that it began with.
        if not (begun and _read_record(beside).get("sent")):
            _catch_up(Bucket(f"{url.rpartition('/')[0]}/{name}"), beside)


def _catch_up(bucket: Bucket, local: Path) -> None:
    """Downloads a newer copy; another process here may be doing so."""
    reported = False
    while True:
        listed = bucket.read(MANIFEST)
        if listed is None:
            return
        _check_manifest(bucket, listed)
        if not _is_behind(local, listed, bucket):
            return
        with contextlib.suppress(layout.InUse), _lock(local):
            # With the lock: another process may have finished it.
            if _is_behind(local, listed, bucket):
                _fetch(bucket, listed, local)
            return
        if not reported:
            print(f"waiting for another process to fetch {bucket.url}")
        reported = True
        time.sleep(POLL_SECONDS)


def _is_behind(local: Path, listed: dict[str, Any], bucket: Bucket) -> bool:
    """Whether the bucket's copy is to replace the local folder.

    Raises:
      UserError: they are of different runs.
    """
    known, here = _read_record(local), progress(list_files(local))
    if here and known.get("run") != listed["run"]:
        raise UserError(
            f"{bucket.url} holds another run than {local}; move or delete one "
            "of them, or choose another --workdir"
        )
    ahead = progress(listed["files"]) - here
    same = known.get("sent") == listed["sent"]
    return ahead > 0 or (ahead == 0 and not same)


def _fetch(bucket: Bucket, listed: dict[str, Any], local: Path) -> None:
    """Replaces a local run, after everything has been downloaded.

    Killed at any moment, it leaves a folder that `_is_behind`: it records no
    manifest, and its checkpoints are some of the old or some of the new ones.
    Other files are kept.
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


def _check_manifest(bucket: Bucket, listed: dict[str, Any]) -> None:
    """Refuses a corrupt manifest, and paths outside the folder."""
    whole = {"run", "sent", "files"} <= listed.keys()
    for name in listed["files"] if whole else ():
        inside = ".." not in PurePosixPath(name).parts
        whole &= inside and RUN_FILE.fullmatch(name) is not None
    if not whole:
        raise UserError(
            f"{bucket.url}/{MANIFEST} is not what was written there; restore "
            "it, or choose another --workdir"
        )


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    atomic_files.write_text(folder / _RECORD, json.dumps(record))


def _lock(local: Path):
    # Outside the folder, which may be replaced.
    return layout.lock(local.with_name(f".{local.name}.lock"), local)


def _linked(source: Path, target: Path) -> bool:
    """Hard-links a file; False where the file system has no links."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True
