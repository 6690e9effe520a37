"""Files that appear whole."""

import concurrent.futures
import os
import subprocess
import sys

from core import atomic_files

WRITE = """
import os
import sys

os.umask(0o027)

from core import atomic_files

atomic_files.write_text(sys.argv[1], "")
"""


def test_a_file_has_the_mode_that_the_umask_leaves(tmp_path):
    path = tmp_path / "file"
    subprocess.run([sys.executable, "-c", WRITE, str(path)], check=True)
    assert path.stat().st_mode & 0o777 == 0o640


def test_threads_that_write_leave_the_umask_as_it_is(tmp_path, monkeypatch):
    """To set it and set it back would let one thread keep another's 0."""
    set_to = []
    monkeypatch.setattr(os, "umask", lambda mask: set_to.append(mask) or 0)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        paths = [tmp_path / str(number) for number in range(20)]
        list(pool.map(lambda path: atomic_files.write_text(path, ""), paths))
    assert not set_to
    assert {path.stat().st_mode for path in paths} == {
        0o100000 | atomic_files.mode_of_new(0o666)
    }
