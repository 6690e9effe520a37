"""Who sends to a bucket: there are no locks, so its owner gives signs of life.

Two runs that take a folder over at the same moment both believe that it is
theirs, until the next sign: the one that wrote last keeps it, the other stops.
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

OWNER = "owner.json"

# Who has given no sign for so long has gone.
SECONDS_BETWEEN_SIGNS, SECONDS_OF_SILENCE = 15.0, 60.0


class Lost(UserError):
    """Another run has taken the folder over."""


class Ownership:
    """This run's claim on a folder in a bucket.

    Args:
      bucket: the folder.

    Attributes:
      id: of the owner that this is.
    """

    def __init__(self, bucket: Bucket):
        self._bucket, self.id = bucket, secrets.token_hex(8)
        self._signs, self._signing = 0, threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_signing, daemon=True)

    def take(self, ended: str) -> None:
        """Becomes the owner, and says so from now on.

        Args:
          ended: an owner that is known to have ended, if it is still named.

        Raises:
          UserError: there is one that lives.
        """
        found = self._bucket.read(OWNER)
        if found is not None and found.get("id") != ended:
            print(
                f"{self._bucket.url} was not left in order by {_who(found)}; "
                f"watching for {SECONDS_OF_SILENCE:.0f} s whether that is over",
                flush=True,
            )
            time.sleep(SECONDS_OF_SILENCE)
            if self._bucket.read(OWNER) not in (None, found):
                raise self._in_use(found)
        try:
            self._bucket.write(OWNER, self._signature(), new=found is None)
        except FileExistsError as error:
            raise self._in_use(self._bucket.read(OWNER) or {}) from error
        self._thread.start()

    def sign(self) -> None:
        """Says that this run is alive.

        Raises:
          Lost: it is the owner no more.
        """
        with self._signing:
            found = self._bucket.read(OWNER)
            # Who took it over and has finished leaves none.
            if found is None or found.get("id") != self.id:
                raise self.lost(found)
            self._bucket.write(OWNER, self._signature())

    def lost(self, found: dict[str, Any] | None = None) -> Lost:
        """Returns what to say when another run has written there.

        Args:
          found: its claim; None if it has ended.
        """
        by = "another run, which has ended" if found is None else _who(found)
        return Lost(
            f"{self._bucket.url} was taken over by {by}; let that run go on, "
            "or choose another --workdir"
        )

    def release(self) -> None:
        """Leaves the folder to whoever comes next."""
        self._over.set()
        if self._thread.ident is None:
            return
        self._thread.join()
        with contextlib.suppress(UserError):
            if (self._bucket.read(OWNER) or {}).get("id") == self.id:
                self._bucket.delete([OWNER])

    def _keep_signing(self) -> None:
        while not self._over.wait(SECONDS_BETWEEN_SIGNS):
            try:
                self.sign()
            except Lost as lost:
                coordinated_shutdown.leave(lost)
            except UserError:
                pass  # Sending tells of it.

    def _signature(self) -> dict[str, Any]:
        self._signs += 1
        now = datetime.datetime.now(datetime.UTC)
        return {
            "id": self.id,
            "host": socket.gethostname(),
            "signs": self._signs,
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
