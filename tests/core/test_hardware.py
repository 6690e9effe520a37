"""Cores, also where the system reports no affinity; and kept memory."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from core import hardware


def test_cores_are_counted_with_and_without_affinity(monkeypatch):
    assert 1 <= hardware.usable_cores() <= os.cpu_count()
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert hardware.usable_cores() == os.cpu_count()


# Takes 200 MB in another thread, as XLA does, twice; prints the page faults
# of the second time.
TWICE = """
import resource, sys, threading
sys.path.insert(0, sys.argv[1])
from core import hardware as machine
for asked in eval(sys.argv[2]):
    if asked == "train.py":
        import runpy, contextlib, io
        sys.argv = ["train.py", "--help"]
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(
            io.StringIO()
        ):
            runpy.run_path(sys.path[0] + "/train.py", run_name="__main__")
    else:
        machine.keep_freed_memory(asked)

def use():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    memory = bytearray(200 << 20)
    memory[::4096] = bytes(len(memory[::4096]))
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

faults = []
for _ in range(2):
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
print(faults[1])
"""
PAGES = (200 << 20) // os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another C library than glibc's"
)
@pytest.mark.parametrize(
    "asked", ["[None]", "[None, 1 << 26]", "[1, None]", "['train.py']"]
)
def test_freed_memory_is_kept(asked):
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            TWICE,
            Path(hardware.__file__).parents[1],
            asked,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    faults = found.stdout.split()[-1]  # Below the help of train.py.
    assert int(faults) < PAGES / 20, f"{faults} page faults in {PAGES} pages"
