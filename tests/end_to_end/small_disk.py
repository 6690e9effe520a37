"""A disk that is full whenever a test says so."""

import contextlib
import os
import resource
import subprocess

import pytest

MEGABYTES = 24


class SmallDisk:
    """A file system of its own, a few megabytes large; takes root to mount."""

    def __init__(self, folder):
        self.folder = folder
        self._filling = folder / "filling"

    def fill(self, leaving=0):
        """Uses every block up, but for so many bytes."""
        self.free()
        with open(self._filling, "wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while file.write(b"x" * 4096):
                    pass
            file.truncate(max(file.tell() - leaving, 0))

    def free(self):
        self._filling.unlink(missing_ok=True)

    def protect(self):
        self._remount("ro")

    def unprotect(self):
        self._remount("rw")

    def _remount(self, how):
        subprocess.run(
            ["mount", "-o", f"remount,{how}", self.folder], check=True
        )


class FileSizeLimit:
    """No file of this process and its children may grow beyond a limit."""

    def __init__(self, folder):
        self.folder = folder

    def fill(self, leaving=0):
        limit_file_size(leaving)

    def free(self):
        limit_file_size(None)

    def protect(self):
        if os.geteuid() == 0:
            pytest.skip("root without the right to mount writes everywhere")
        self._chmod(0o555)

    def unprotect(self):
        self._chmod(0o755)

    def _chmod(self, mode):
        for folder, _, _ in os.walk(self.folder):
            os.chmod(folder, mode)


def limit_file_size(size):
    """Lets no file grow beyond `size` bytes; None lifts the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = resource.RLIM_INFINITY if size is None else size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def _mounted(folder) -> bool:
    process = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", folder],
        capture_output=True,
        check=False,
    )
    return process.returncode == 0


@contextlib.contextmanager
def small_disk(folder):
    """Yields a disk, and says which kind it is."""
    if os.geteuid() == 0 and _mounted(folder):
        print(f"the small disk is a tmpfs of {MEGABYTES} MB")
        try:
            yield SmallDisk(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)
    else:
        print("the small disk is a limit on the size of files: no root here")
        disk = FileSizeLimit(folder)
        try:
            yield disk
        finally:
            disk.free()
