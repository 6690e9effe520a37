"""One of two processes, one of which fails; run as a script.

    python fail_as_two.py COORDINATOR PROCESS FAILING

FAILING is 0 or 1, the process that raises a UserError; "bug", where process 1
raises another exception; or "closing", where process 0 raises on exit. The
other process blocks meanwhile, as in a collective on devices.
"""

import contextlib
import os
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"

from core.errors import TransientError, exit_on_user_error
from training import runtime
from training.cli import Peers
from training.multihost import comm, coordinated_shutdown


@contextlib.contextmanager
def kept():
    """In place of a bucket whose upload takes a while."""
    try:
        yield
    finally:
        time.sleep(1)
        print("sent", flush=True)


@contextlib.contextmanager
def closed(failing):
    """In place of checkpoints whose last write fails."""
    yield
    if failing:
        raise TransientError("process 0 cannot go on")


def main():
    coordinator, own, failing = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    runtime.connect(Peers(coordinator, 2, own))
    with (
        exit_on_user_error(),
        coordinated_shutdown.shutdown_together(),
        coordinated_shutdown.on_primary(kept),
        closed(failing == "closing" and own == 0),
        coordinated_shutdown.broadcasting_errors(),
    ):
        comm.all_gather_text("ready")
        if str(own) == failing:
            raise TransientError(f"process {own} cannot go on")
        if failing == "bug" and own == 1:
            raise ZeroDivisionError("one over nothing")
        if failing != "closing":
            time.sleep(120)


if __name__ == "__main__":
    main()
