"""A run folder in a bucket: a local folder, and the bucket kept equal to it.

Nothing in a bucket can be appended to, locked or renamed. So a run works in a
local folder, and what is new is sent after each checkpoint, in the background,
and at the end. Beside the run's files, under their own names, there lie

    sent.json    which files are the run's; written when all of them are there
    owner.json   who sends there; see `ownership`

What `sent.json` does not list does not count, and what it listed is deleted
only after the next one is written: a process that is killed while it sends
leaves the last list and every file on it. (The log may then be longer than its
checkpoint says; a run that goes on cuts it, as it does at home.)
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import sys
import threading
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import files
from errors import UserError
from training import ownership, run_folder
from training.bucket import Bucket

SENT = "sent.json"

SECONDS_BETWEEN_LOOKS, SECONDS_BETWEEN_TRIALS = 1.0, 15.0

# What the local folder remembers of the bucket.
_RECORD = ".bucket.json"

# The files of a run, over one fold or all: no lock, nothing half written,
# nothing that was set aside, no other run in a folder inside.
_OURS = re.compile(
    r"(fold-\d+/)?(checkpoints/\d+/.+|logits/[^./][^/]*|[^./][^/]*)"
)
_CHECKPOINT = re.compile(r"((?:fold-\d+/)?checkpoints)/(\d+)/")

# Path -> [size, time of change in ns].
Files = dict[str, list[int]]


class Moving(UserError):
    """Checkpoints came or went while they were looked at."""


class Mirror:
    """Keeps a bucket equal to a local run folder; a context manager.

    Entering brings the local folder up to date, or refuses. Leaving sends
    what was not sent, also after an error.

    Args:
      url: of the folder in the bucket.
      local: the run folder (`bucket.local_copy`).
    """

    def __init__(self, url: str, local: Path):
        self._bucket, self._local = Bucket(url), local
        self._owner = ownership.Ownership(self._bucket)
        self._run = ""  # Names the run on any machine.
        self._sent: Files = {}  # As they were when they were sent.
        self._there: set[str] = set()  # What may lie there, of any age.
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
            if error is None:
                url = self._bucket.url
                print(f"all is in {url}, and here in {self._local}")
        except UserError as failed:
            text = f"{failed}; all that was trained is in {self._local}"
            if error is None:
                raise UserError(text) from failed
            print(f"error: {text}", file=sys.stderr)
        finally:
            self._release()

    def send(self) -> None:
        """Sends what is new, then lists it there, then deletes what is gone.

        Raises:
          Lost: the bucket's folder is another run's by now.
          Moving: checkpoints came or went meanwhile; try again.
          UserError: it cannot be sent.
        """
        self._owner.sign()
        here = files_of(self._local)
        new = [name for name in here if here[name] != self._sent.get(name)]
        gone = self._there - here.keys()
        if not new and not gone:
            return
        with files.temporary_folder(self._local, ".sending-") as staged:
            self._stage(new, staged)
            if _checkpoints(files_of(self._local)) != _checkpoints(here):
                raise Moving(f"{self._local} changes while it is sent")
            self._there.update(new)
            self._bucket.send(new, staged)
        sent = self._list(here)
        self._sent = here
        self._remember(sent)
        self._bucket.delete(_in_folders(gone, here))
        self._there = set(here)

    def _begin(self) -> None:
        for half in self._local.glob(".sending-*"):
            shutil.rmtree(half, ignore_errors=True)
        if self._bucket.read(SENT) is None:
            strange = self._bucket.top() - {ownership.OWNER}
            # Hidden is what a disk keeps of a file that was being written.
            strange = {name for name in strange if name[0] != "."}
            if strange:
                raise UserError(
                    f"{self._bucket.url} holds {min(strange)} and no run; "
                    "choose an empty --workdir"
                )
        known = _remembered(self._local)
        # The last process here has ended: it would hold the lock.
        self._owner.take(ended=known.get("owner", ""))
        # Only now: others may have sent until a moment ago.
        listed = self._bucket.read(SENT)
        here = files_of(self._local)
        if listed is None:
            self._run = known.get("run") or secrets.token_hex(8)
            if progress(here):
                print(f"{self._bucket.url} is empty; the run here goes on")
            self._remember(self._list([]))
            return
        _check_list(self._bucket, listed)
        self._run = listed["run"]
        if progress(here) and known.get("run") != self._run:
            raise UserError(
                f"{self._bucket.url} holds another run than {self._local}; "
                "move or delete one of them, or choose another --workdir"
            )
        same = known.get("sent") == listed["sent"]
        ahead = progress(listed["files"]) - progress(here)
        if ahead > 0 or (ahead == 0 and not same):
            _fetch(self._bucket, listed, self._local)
            known, same = _remembered(self._local), True
        self._sent = known["files"] if same else {}
        # Also what was half sent, or should have been deleted.
        strays = filter(_CHECKPOINT.match, self._bucket.names())
        self._there = {*listed["files"], *strays}
        self._remember(listed["sent"] if same else "")

    def _release(self) -> None:
        self._owner.release()
        self._lock.close()

    def _keep_sending(self) -> None:
        before, wait, told = None, SECONDS_BETWEEN_LOOKS, False
        while not self._over.wait(wait):
            wait = SECONDS_BETWEEN_LOOKS
            # Twice the same: none is just being renamed or deleted.
            now = _checkpoints(files_of(self._local))
            still, before = now == before, now
            if not still or now == _checkpoints(self._sent):
                continue
            try:
                self.send()
                told = False
            except ownership.Lost as lost:
                ownership.leave(lost)
            except Moving:
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
                if not (_CHECKPOINT.match(name) and _linked(source, target)):
                    shutil.copyfile(source, target)
        except FileNotFoundError as error:
            raise Moving(f"{self._local} changes while it is sent") from error
        except OSError as error:
            raise UserError(
                f"cannot write {self._local}: {error.strerror}; free some "
                "space and run the same command again"
            ) from error

    def _list(self, names: Iterable[str]) -> str:
        """Writes which files are the run's; returns what names the list."""
        sent = secrets.token_hex(8)
        content = {"run": self._run, "sent": sent, "files": sorted(names)}
        self._bucket.write(SENT, content)
        return sent

    def _remember(self, sent: str) -> None:
        record = {"run": self._run, "sent": sent, "files": self._sent}
        _write_record(self._local, {**record, "owner": self._owner.id})


def fetch_beside(url: str, local: Path, names: Iterable[str]) -> None:
    """Fetches runs that this one starts or learns from, and that are not here.

    Args:
      url: of this run.
      local: its folder.
      names: of other runs; bare ones lie beside this one, in the bucket as
        here, and all others are left alone.

    Raises:
      UserError: the bucket does not answer.
    """
    for name in names:
        if not name or "/" in name:
            continue
        if progress(files_of(local.with_name(name))):
            continue
        bucket = Bucket(f"{url.rpartition('/')[0]}/{name}")
        listed = bucket.read(SENT)
        if listed is not None:
            _check_list(bucket, listed)
            with _lock(local.with_name(name)):
                _fetch(bucket, listed, local.with_name(name))


def files_of(folder: Path) -> Files:
    """Returns the files of the run in `folder`."""
    found = {}
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            relative = path.relative_to(folder).as_posix()
            if _OURS.fullmatch(relative):
                with contextlib.suppress(FileNotFoundError):
                    about = path.stat()
                    found[relative] = [about.st_size, about.st_mtime_ns]
    return found


def progress(names: Iterable[str]) -> int:
    """Returns the step of the newest checkpoint, summed over folds; or 0."""
    newest: dict[str, int] = {}
    for found in filter(None, map(_CHECKPOINT.match, names)):
        newest[found[1]] = max(newest.get(found[1], 0), int(found[2]))
    return sum(newest.values())


def _checkpoints(found: Files) -> Files:
    return {name: found[name] for name in found if _CHECKPOINT.match(name)}


def _fetch(bucket: Bucket, listed: dict[str, Any], local: Path) -> None:
    """Replaces a local folder, once all that is to replace it has come."""
    arriving = local.with_name(f".{local.name}.arriving")
    shutil.rmtree(arriving, ignore_errors=True)
    bucket.fetch(listed["files"], arriving)
    here = files_of(arriving)
    record = {"run": listed["run"], "sent": listed["sent"], "files": here}
    _write_record(arriving, record)
    shutil.rmtree(local, ignore_errors=True)
    arriving.rename(local)
    print(f"fetched {len(here)} files from {bucket.url}", flush=True)


def _check_list(bucket: Bucket, listed: dict[str, Any]) -> None:
    """Refuses a list that is damaged, or leads out of the folder."""
    whole = {"run", "sent", "files"} <= listed.keys()
    for name in listed["files"] if whole else ():
        inside = ".." not in PurePosixPath(name).parts
        whole &= inside and _OURS.fullmatch(name) is not None
    if not whole:
        raise UserError(
            f"{bucket.url}/{SENT} is not what was written there; restore it, "
            "or choose another --workdir"
        )


def _remembered(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    files.write_text(folder / _RECORD, json.dumps(record))


def _lock(local: Path):
    # Beside the folder, which may be replaced.
    return run_folder.lock(local.with_name(f".{local.name}.lock"), local)


def _in_folders(gone: Iterable[str], here: Iterable[str]) -> set[str]:
    """Whole checkpoints in place of their files: some disks have folders."""
    kept = {found[0] for found in filter(None, map(_CHECKPOINT.match, here))}
    names = set()
    for name in gone:
        found = _CHECKPOINT.match(name)
        whole = found is not None and found[0] not in kept
        names.add(found[0].rstrip("/") if whole else name)
    return names


def _linked(source: Path, target: Path) -> bool:
    """Links a file; False where this disk has no links."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True
