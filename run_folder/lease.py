"""A lease on a run folder in a bucket, which has no locks: renewed or expired.

Two runs that acquire an expired lease at the same moment both believe that
they hold it until the next renewal: the one that wrote last keeps it, the
other stops.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core import signals
from core.errors import UserError

# A lease that was not renewed for so long has expired.
RENEWAL_SECONDS, EXPIRY_SECONDS = 15.0, 60.0

# What deleting it may take when the process is about to exit. With the 25 s
# that saving may take, that is less than the 30 s after which schedulers kill.
_RELEASE_SECONDS = 3.0


class Lease:
    """This run's lease on a folder in a bucket; a context manager.

    Args:
      path: of the object that stands for it.
      on_lost: called in a thread when another run has taken the folder over.

    Raises:
      UserError: another run holds it.
    """

    def __init__(self, path: Path, on_lost: Callable[[UserError], None]):
        import fsspec

        self._path, self._on_lost = path, on_lost
        self._fs, self._name = fsspec.core.url_to_fs(str(path))
        self._id, self._renewals = secrets.token_hex(8), 0
        self._released, self._changing = threading.Event(), threading.Lock()
        self._acquire()
        self._thread = threading.Thread(target=self._keep_renewing, daemon=True)
        self._thread.start()
        signals.register_cleanup(self.close)

    def __enter__(self) -> Lease:
        """Does nothing: the lease is held since construction."""
        return self

    def __exit__(self, *exception) -> None:
        """Releases it."""
        self.close()

    def close(self) -> None:
        """Deletes the lease, so that the next run need not wait; once."""
        if self._released.is_set():
            return
        self._released.set()
        deleting = threading.Thread(target=self._delete, daemon=True)
        deleting.start()
        deleting.join(_RELEASE_SECONDS)

    def _acquire(self) -> None:
        found = self._read()
        if found is not None:
            print(
                f"{self._path.parent} was not left in order by {_who(found)}; "
                f"watching for {EXPIRY_SECONDS:.0f} s whether that is over",
                flush=True,
            )
            time.sleep(EXPIRY_SECONDS)
            if (now := self._read()) not in (None, found):
                raise self._in_use(now)
            found = now
        try:
            # One of two that do so at the same time succeeds.
            self._write("create" if found is None else "overwrite")
        except FileExistsError as error:
            raise self._in_use(self._read() or {}) from error

    def _keep_renewing(self) -> None:
        while not self._released.wait(RENEWAL_SECONDS):
            lost = None
            # A bucket that does not answer may do so the next time.
            with contextlib.suppress(Exception):
                lost = self._renew()
            if lost is not None:
                self._on_lost(lost)
                return

    def _renew(self) -> UserError | None:
        """Renews it; returns an error if another run has taken it over."""
        with self._changing:
            if self._released.is_set():  # It would come back once deleted.
                return None
            found = self._read()
            # A run that took it over and has finished has deleted it.
            if found is None or found.get("id") != self._id:
                self._released.set()
                return self._lost(found)
            self._write("overwrite")
            return None

    def _delete(self) -> None:
        with contextlib.suppress(Exception), self._changing:  # It expires, too.
            if (self._read() or {}).get("id") == self._id:
                self._fs.rm_file(self._name)

    def _read(self) -> dict[str, Any] | None:
        """Returns a lease; {} if it is not what was written, None if absent."""
        try:
            found = json.loads(self._fs.cat_file(self._name))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, mode: str) -> None:
        self._renewals += 1
        now = datetime.datetime.now(datetime.UTC)
        content = {"id": self._id, "host": socket.gethostname()}
        content |= {"renewals": self._renewals}
        content |= {"time": now.isoformat(timespec="seconds")}
        self._fs.pipe_file(self._name, json.dumps(content).encode(), mode=mode)

    def _in_use(self, owner: dict[str, Any]) -> UserError:
        return UserError(
            f"{_who(owner)} is training in {self._path.parent}; wait for it "
            "or choose another --workdir"
        )

    def _lost(self, owner: dict[str, Any] | None) -> UserError:
        by = "another run, which has ended" if owner is None else _who(owner)
        return UserError(
            f"{self._path.parent} was taken over by {by}; let that run go on, "
            "or choose another --workdir"
        )


def _who(owner: dict[str, Any]) -> str:
    host, when = owner.get("host", "another host"), owner.get("time", "?")
    return f"a run on {host} (last sign at {when})"
