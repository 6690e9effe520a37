"""For tests that start processes which meet over loopback."""

import socket
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor


def free_address() -> str:
    """Returns an address of this machine on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def communicate_all(
    processes: Sequence[subprocess.Popen], seconds: float
) -> list[tuple[str, str, int]]:
    """Returns output, errors and exit code of each.

    All are read at once. One after the other, a process would wait for room
    in a pipe that nobody reads, and the first one for that process.

    Raises:
      subprocess.TimeoutExpired: one has not ended; all are killed.
    """

    def read(process: subprocess.Popen) -> tuple[str, str, int]:
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            for one in processes:
                one.kill()
            raise
        return output, errors, process.returncode

    with ThreadPoolExecutor(len(processes)) as readers:
        return list(readers.map(read, processes))
