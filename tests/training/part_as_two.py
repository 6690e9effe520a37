"""Is one of two processes, of which one fails alone; run as a script.

    python part_as_two.py COORDINATOR PROCESS FAILING

The other one is stuck then, as on a device that waits for an answer.
"""

import contextlib
import os
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"

from errors import TryAgain, one_sentence
from training import parting, processes, runtime
from training.config import Peers


@contextlib.contextmanager
def kept():
    """Stands for a bucket that takes a while to be sent."""
    try:
        yield
    finally:
        time.sleep(1)
        print("sent", flush=True)


def main():
    coordinator, own, failing = sys.argv[1], *map(int, sys.argv[2:])
    runtime.connect(Peers(coordinator, 2, own))
    with (
        one_sentence(),
        parting.ending_together(),
        parting.in_first(kept),
        parting.announcing(),
    ):
        processes.all_tell("ready")
        if own == failing:
            raise TryAgain(f"process {own} cannot go on")
        time.sleep(120)


if __name__ == "__main__":
    main()
