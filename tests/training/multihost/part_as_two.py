"""Is one of two processes, of which one fails alone; run as a script.

    python part_as_two.py COORDINATOR PROCESS FAILING

FAILING is 0 or 1, the process that raises an error; "bug", where that of
process 1 is none of ours; or "closing", where process 0 raises it at the end.
The other one is stuck then, as on a device that waits for an answer.
"""

import contextlib
import os
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"

from core.errors import TryAgain, one_sentence
from training import runtime
from training.config import Peers
from training.multihost import comm, coordinated_shutdown


@contextlib.contextmanager
def kept():
    """Stands for a bucket that takes a while to be sent."""
    try:
        yield
    finally:
        time.sleep(1)
        print("sent", flush=True)


@contextlib.contextmanager
def closed(failing):
    """Stands for checkpoints that cannot be written to their end."""
    yield
    if failing:
        raise TryAgain("process 0 cannot go on")


def main():
    coordinator, own, failing = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    runtime.connect(Peers(coordinator, 2, own))
    with (
        one_sentence(),
        coordinated_shutdown.ending_together(),
        coordinated_shutdown.in_first(kept),
        closed(failing == "closing" and own == 0),
        coordinated_shutdown.announcing(),
    ):
        comm.all_gather_text("ready")
        if str(own) == failing:
            raise TryAgain(f"process {own} cannot go on")
        if failing == "bug" and own == 1:
            raise ZeroDivisionError("one over nothing")
        if failing != "closing":
            time.sleep(120)


if __name__ == "__main__":
    main()
