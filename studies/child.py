"""Becomes a train.py that gets SIGTERM when the study dies, however it does.

Started as a file, so that nothing of Sextet is imported on the way.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2), of Linux alone.


def main(parent: int, words: list[str]) -> None:
    """Replaces this process.

    Args:
      parent: process id of the study.
      words: of train.py's command line.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # Dead already.
        sys.exit(128 + signal.SIGTERM)
    os.execv(sys.executable, [sys.executable, *words])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
