"""C++ of this repository, compiled on the user's machine, for that machine.

A shared library is compiled the first time that it is asked for, or in the
background before that, and kept under a name that tells all that it depends
on. Without a compiler, or wherever anything about it fails, there is none, and
nothing is said: whoever asks has another form of the same in Python.
SEXTET_NATIVE=0 asks for that form.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path

from core import atomic_files, signals

FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-w")
LONGEST_COMPILATION = 300  # seconds, on a machine that others use too


class Library:
    """Code that is compiled where and when it is needed.

    Args:
      name: of the library, for people; its file's name begins with it.
      sources: .cc files.
      headers: what they include from this repository.
      flags: of the compiler, besides `FLAGS`.
      includes: folders of other people's headers.
      versions: of those headers.
    """

    def __init__(
        self,
        name: str,
        sources: Sequence[Path],
        headers: Sequence[Path] = (),
        *,
        flags: Sequence[str] = (),
        includes: Sequence[str | Path] = (),
        versions: Sequence[str] = (),
    ):
        self.name = name
        self.sources = sources
        self.headers = headers
        self.flags = flags
        self.includes = includes
        self.versions = versions
        self._begun: futures.Future[Path | None] | None = None
        self._begun_by = 0  # Of the process; those forked off have no thread.

    def begin(self) -> None:
        """Compiles in the background, if need be; `path` waits for it.

        A process that ends, by itself or by Ctrl-C or SIGTERM, does not wait,
        and leaves no compiler behind.
        """
        if self._begun is not None:
            return
        thread = threading.Thread(
            target=self._compile_behind, name="compiler", daemon=True
        )
        begun = self._begun = futures.Future()
        self._begun_by = os.getpid()
        try:
            thread.start()
        except RuntimeError:  # There are too many. `path` will do it.
            self._begun = None
            return
        atexit.register(_stop, begun)

    def _compile_behind(self) -> None:
        path = None
        with contextlib.suppress(Exception):  # Then there is none.
            path = self._path()
        self._begun.set_result(path)

    def path(self) -> Path | None:
        """Returns the compiled library, compiling it if need be.

        Its name differs for all that is compiled otherwise. None where there
        is none.
        """
        if self._begun is None or self._begun_by != os.getpid():
            return self._path()
        return self._begun.result()

    def _path(self) -> Path | None:
        if os.environ.get("SEXTET_NATIVE") == "0":
            return None
        found = compiler()
        if found is None:
            return None
        command = [*found, *FLAGS, *self.flags]
        try:
            inputs = (*self.headers, *self.sources)
            mark = _mark(command, inputs, self.versions)
            path = _folder() / f"{self.name}_{mark}.so"
            if not path.exists():
                _compile(command, self.sources, self.includes, path)
            return path
        except (OSError, RuntimeError, subprocess.SubprocessError):
            return None  # RuntimeError: nobody's home folder.


def compiler() -> list[str] | None:
    """Returns the words that CXX, or else c++, stand for; None without one."""
    words = shlex.split(os.environ.get("CXX") or "c++")
    found = shutil.which(words[0]) if words else None
    return None if found is None else [found, *words[1:]]


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(cache) / "sextet" / "native"


def _mark(
    command: Sequence[str], files: Sequence[Path], versions: Sequence[str]
) -> str:
    """Hashes all that the compiled code depends on."""
    compiler, *flags = command
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, check=True, timeout=60
    )
    parts = (
        *(path.read_bytes() for path in files),
        version.stdout,
        repr((flags, tuple(versions), _processor())).encode(),
    )
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _processor() -> str:
    """What the processor can do: a folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(
        sorted({line for line in lines if line.startswith(wanted)})
    )


def _compile(
    command: Sequence[str],
    sources: Sequence[Path],
    includes: Sequence[str | Path],
    path: Path,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    folders = [word for folder in includes for word in ("-I", folder)]
    with atomic_files.temporary_folder(path.parent) as folder:
        objects = [folder / f"{source.stem}.o" for source in sources]
        _run_together(
            [
                [*command, "-c", *folders, source, "-o", made]
                for source, made in zip(sources, objects, strict=True)
            ]
        )
        made = folder / path.name
        _run_together([[*command, "-shared", *objects, "-o", made]])
        with open(made, "rb") as file:
            os.fsync(file.fileno())
        # In one step: other processes may be doing the same.
        os.replace(made, path)


_PID = os.getpid()
_running: set[subprocess.Popen] = set()
_ending = False
_starting = threading.Lock()


def _run_together(commands: Sequence[Sequence[str | Path]]) -> None:
    """Runs commands to their ends, which must be good ones, side by side."""
    compilers = []
    try:
        for command in commands:
            compilers.append(_start(command))
        for compiler in compilers:
            if compiler.wait(LONGEST_COMPILATION):
                raise subprocess.CalledProcessError(
                    compiler.returncode, compiler.args
                )
    finally:
        _kill(compilers)
        _running.difference_update(compilers)


def _start(command: Sequence[str | Path]) -> subprocess.Popen:
    with _starting:
        if _ending:
            raise RuntimeError("this process is about to end")
        # In a group of its own, with the processes that it starts itself.
        compiler = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        _running.add(compiler)
    return compiler


def _kill(compilers: Sequence[subprocess.Popen]) -> None:
    for compiler in compilers:
        if compiler.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(compiler.pid, signal.SIGKILL)
            compiler.wait()


def _stop(begun: futures.Future | None = None) -> None:
    """Ends compilers, and waits until what was begun has tidied up."""
    global _ending
    if os.getpid() != _PID:  # What is forked off has begun nothing.
        return
    with _starting:
        _ending = True
        running = list(_running)
    _kill(running)
    if begun is not None:
        futures.wait([begun], timeout=5)


signals.register_cleanup(_stop)
