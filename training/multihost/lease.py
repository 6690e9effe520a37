"""A lease on a folder in a bucket, which has no locks: renewed or expired.

Two runs that acquire an expired lease at the same moment both believe that
they hold it until the next renewal: the one that wrote last keeps it, the
other stops.
"""

from __future__ import annotations

import contextlib
import datetime
import secrets
import socket
import threading
import time
from typing import Any

from core.errors import UserError
from training.multihost import coordinated_shutdown
from training.multihost.object_store import Bucket

LEASE_FILE = "owner.json"

# A lease that was not renewed for so long has expired.
RENEWAL_SECONDS, EXPIRY_SECONDS = 15.0, 60.0


class LeaseLostError(UserError):
    """Another run has taken over the folder."""


class Lease:
    """This run's lease on a folder in a bucket.

    Args:
      bucket: the folder.

    Attributes:
      id: of this holder.
    """

    def __init__(self, bucket: Bucket):
        self._bucket, self.id = bucket, secrets.token_hex(8)
        self._renewals, self._renewing = 0, threading.Lock()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, daemon=True)

    def acquire(self, ended: str) -> None:
        """Acquires the lease, and renews it from now on.

        Args:
          ended: id of a holder that is known to have ended.

        Raises:
          UserError: another run holds it.
        """
        found = self._bucket.read(LEASE_FILE)
        if found is not None and found.get("id") != ended:
            print(
                f"{self._bucket.url} was not left in order by {_who(found)}; "
                f"watching for {EXPIRY_SECONDS:.0f} s whether that is over",
                flush=True,
            )
            time.sleep(EXPIRY_SECONDS)
            if self._bucket.read(LEASE_FILE) not in (None, found):
                raise self._in_use(found)
        try:
            self._bucket.write(LEASE_FILE, self._content(), new=found is None)
        except FileExistsError as error:
            raise self._in_use(self._bucket.read(LEASE_FILE) or {}) from error
        self._thread.start()

    def renew(self) -> None:
        """Renews the lease.

        Raises:
          LeaseLostError: another run has acquired it.
        """
        with self._renewing:
            found = self._bucket.read(LEASE_FILE)
            # A run that took it over and has finished has deleted it.
            if found is None or found.get("id") != self.id:
                raise self.lost(found)
            self._bucket.write(LEASE_FILE, self._content())

    def lost(self, found: dict[str, Any] | None = None) -> LeaseLostError:
        """Returns the error for a folder that another run has written to.

        Args:
          found: its lease; None if it has ended.
        """
        by = "another run, which has ended" if found is None else _who(found)
        return LeaseLostError(
            f"{self._bucket.url} was taken over by {by}; let that run go on, "
            "or choose another --workdir"
        )

    def release(self) -> None:
        """Stops renewing the lease and deletes it."""
        self._released.set()
        if self._thread.ident is None:
            return
        self._thread.join()
        with contextlib.suppress(UserError):
            if (self._bucket.read(LEASE_FILE) or {}).get("id") == self.id:
                self._bucket.delete([LEASE_FILE])

    def _keep_renewing(self) -> None:
        while not self._released.wait(RENEWAL_SECONDS):
            try:
                self.renew()
            except LeaseLostError as lost:
                coordinated_shutdown.shutdown(lost)
            except UserError:
                pass  # The next upload reports it.

    def _content(self) -> dict[str, Any]:
        self._renewals += 1
        now = datetime.datetime.now(datetime.UTC)
        return {
            "id": self.id,
            "host": socket.gethostname(),
            "renewals": self._renewals,
            "time": now.isoformat(timespec="seconds"),
        }

    def _in_use(self, owner: dict[str, Any]) -> UserError:
        return UserError(
            f"{_who(owner)} is training in {self._bucket.url}; wait for it or "
            "choose another --workdir"
        )


def _who(owner: dict[str, Any]) -> str:
    host, when = owner.get("host", "another host"), owner.get("time", "?")
    return f"a run on {host} (last sign at {when})"
