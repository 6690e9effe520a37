"""One of two processes, one of which fails; run as a script.

    python fail_as_two.py COORDINATOR PROCESS FAILING

FAILING is 0 or 1, the process that raises a UserError; "bug", where process 1
raises another exception; "closing", where process 0 raises on exit; "saving",
where process 1 does while its last write waits for process 0; or "apart",
where each has a folder of its own. Else the other process blocks meanwhile, as
in a collective on devices.
"""

import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

from core.errors import TransientError, exit_on_user_error
from training import runtime
from training.cli import Peers
from training.multihost import comm, coordinated_shutdown


@contextlib.contextmanager
def closed(failing):
    """In place of checkpoints whose last write fails, or waits."""
    yield
    if failing == "closing":
        raise TransientError("process 0 cannot go on")


@contextlib.contextmanager
def waiting(failing):
    """In place of checkpoints that wait at Orbax's barrier."""
    try:
        yield
    finally:
        if failing == "saving":
            time.sleep(300)


def main():
    coordinator, own, failing = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    runtime.connect(Peers(coordinator, 2, own))
    coordinated_shutdown.CLOSE_TIMEOUT_SECONDS = 3.0
    with (
        exit_on_user_error(),
        coordinated_shutdown.shutdown_together(),
        closed(failing if own == 0 else ""),
        waiting(failing if own == 1 else ""),
        coordinated_shutdown.broadcasting_errors(),
    ):
        comm.all_gather_text("ready")
        if failing == "apart":
            comm._SHARED_SECONDS = 1
            with tempfile.TemporaryDirectory() as folder:
                comm.check_shared(Path(folder))
        if failing == "saving" and own == 1:
            raise TransientError("process 1 cannot go on")
        if str(own) == failing:
            raise TransientError(f"process {own} cannot go on")
        if failing == "bug" and own == 1:
            raise ZeroDivisionError("one over nothing")
        if failing != "closing":
            time.sleep(120)


if __name__ == "__main__":
    main()
