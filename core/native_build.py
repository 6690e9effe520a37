"""C++ of this repository, compiled on the user's machine, for that machine.

`make setup` compiles every shared library; one that is missing is compiled
when it is first needed, or in the background before that. Libraries are kept
in the user's cache under a name that depends on sources, flags, compiler and
processor. Without a compiler there is no library, and callers use their Python
or JAX implementation instead; a build that fails says so on stderr, once, and
then the same happens. SEXTET_NATIVE=0 turns all C++ off.

    python -m core.native_build MODULE:LIBRARY ...
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import hashlib
import importlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path
from typing import IO

from core import atomic_files, output, signals

FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-fPIC",
    "-Wall",
    "-Wextra",
)
TIMEOUT = 300  # seconds for one compilation, on a machine that others use too
ERROR_LINES = 12  # of the compiler's output that are shown


class BuildError(Exception):
    """A library could not be built; the message is for the user."""


class Library:
    """A shared library that is compiled where and when it is needed.

    Args:
      name: for people; the file's name begins with it.
      sources: .cc files.
      headers: what they include from this repository.
      flags: of the compiler, besides `FLAGS`.
      includes: folders of third-party headers; the compiler does not warn
        about those.
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
        self._pending: futures.Future[Path | None] | None = None
        self._pending_pid = 0  # Forked processes do not have the thread.
        self._failed = False

    def begin(self) -> None:
        """Compiles in the background, if need be; `path` waits for it.

        A process that ends, by itself or by Ctrl-C or SIGTERM, does not wait,
        and leaves no compiler behind.
        """
        if self._pending is not None:
            return
        thread = threading.Thread(
            target=self._build_in_background, name="compiler", daemon=True
        )
        pending = self._pending = futures.Future()
        self._pending_pid = os.getpid()
        try:
            thread.start()
        except RuntimeError:  # Too many threads. `path` will do it.
            self._pending = None
            return
        atexit.register(_stop, pending)

    def _build_in_background(self) -> None:
        path = None
        try:
            path = self._path()
        finally:  # An unforeseen exception shows its traceback.
            self._pending.set_result(path)

    def path(self) -> Path | None:
        """Returns the compiled library, compiling it if need be.

        None where there is no compiler, C++ is turned off, or the build
        failed, which is then printed to stderr.
        """
        if self._pending is None or self._pending_pid != os.getpid():
            return self._path()
        return self._pending.result()

    def _path(self) -> Path | None:
        try:
            return self.build()
        except BuildError as error:
            if not (self._failed or _ending):
                print(
                    f"warning: {error}\nGoing on without this C++ library, "
                    "which is slower; SEXTET_NATIVE=0 silences this",
                    file=sys.stderr,
                    flush=True,
                )
            self._failed = True
            return None

    def build(self) -> Path | None:
        """Compiles the library unless it is in the cache, and returns it.

        None without a compiler, or where C++ is turned off.

        Raises:
          BuildError: it does not compile, or cannot be stored.
        """
        if os.environ.get("SEXTET_NATIVE") == "0":
            return None
        found = compiler()
        if found is None:
            return None
        command = [*found, *FLAGS, *self.flags]
        inputs = (*self.headers, *self.sources)
        try:
            key = _cache_key(command, inputs, self.versions)
            path = _folder() / f"{self.name}_{key}.so"
            if not path.exists():
                _compile(command, self.sources, self.includes, path)
        # RuntimeError: also where the home folder is unknown.
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            raise BuildError(
                f"the C++ library {self.name} cannot be built: {error}"
            ) from error
        return path


def compiler() -> list[str] | None:
    """Returns the compiler's command: $CXX, or c++; None without one."""
    try:
        words = shlex.split(os.environ.get("CXX") or "c++")
    except ValueError:  # A quote that is not closed.
        return None
    found = shutil.which(words[0]) if words else None
    return None if found is None else [found, *words[1:]]


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(cache) / "sextet" / "native"


def _cache_key(
    command: Sequence[str], files: Sequence[Path], versions: Sequence[str]
) -> str:
    """Hashes everything that the compiled code depends on."""
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
    """Describes the processor: machines may share a cache folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
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
    folders = [word for folder in includes for word in ("-isystem", folder)]
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
    """Runs commands side by side until all have succeeded.

    Raises:
      RuntimeError: one of them failed; with the first lines of its output.
    """
    compilers = []
    # Compilers quote in UTF-8, or in the locale's encoding, and name files.
    with tempfile.TemporaryFile(
        "w+", encoding="utf-8", errors="backslashreplace"
    ) as said:
        try:
            for command in commands:
                compilers.append(_start(command, said))
            failed = [one for one in compilers if one.wait(TIMEOUT)]
        finally:
            _kill(compilers)
            _running.difference_update(compilers)
        said.seek(0)
        lines = said.read().splitlines()
    if failed:
        command = shlex.join(map(str, failed[0].args))
        raise RuntimeError(_explain(command, failed[0].returncode, lines))
    # Warnings are for developers, and a build is successful with them.
    for line in lines:
        print(line, file=sys.stderr)


def _explain(command: str, code: int, lines: Sequence[str]) -> str:
    """Describes a failed build by the compiler's first error and its lines."""
    errors = [i for i, line in enumerate(lines) if "error" in line]
    first = errors[0] if errors else 0
    shown = lines[first : first + ERROR_LINES]
    return "\n".join([f"exit code {code} of {command}", *shown])


def _start(command: Sequence[str | Path], said: IO[str]) -> subprocess.Popen:
    with _starting:
        if _ending:
            raise RuntimeError("this process is about to end")
        # In a group of its own, with the processes that it starts itself.
        compiler = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
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


def _stop(pending: futures.Future | None = None) -> None:
    """Ends compilers, and waits until the background build has cleaned up."""
    global _ending
    if os.getpid() != _PID:  # Forked processes have started nothing.
        return
    with _starting:
        _ending = True
        running = list(_running)
    _kill(running)
    if pending is not None:
        futures.wait([pending], timeout=5)


signals.register_cleanup(_stop)


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds the libraries named on the command line; for `make setup`.

    Args:
      arguments: "module:attribute" of each `Library`; from sys.argv when None.

    Returns:
      0. A failed build is printed: everything runs without C++, only slower.
    """
    parser = argparse.ArgumentParser(prog="python -m core.native_build")
    parser.add_argument("libraries", nargs="+", metavar="MODULE:LIBRARY")
    if compiler() is None:
        print(
            "warning: there is no C++ compiler (c++, or what CXX names); "
            "training on a CPU is slower than it could be",
            file=sys.stderr,
        )
        return 0
    for name in parser.parse_args(arguments).libraries:
        module, _, attribute = name.partition(":")
        library = getattr(importlib.import_module(module), attribute)
        start = time.monotonic()
        path = library.path()
        if path is not None:
            took = time.monotonic() - start
            print(f"C++ for this processor: {path} ({took:.0f} s)")
    return 0


if __name__ == "__main__":
    output.install()
    signals.install()
    sys.exit(main())
