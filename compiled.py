"""C++ of this repository, compiled on the user's machine, for that machine.

A shared library is compiled the first time that it is asked for and kept,
under a name that tells all that it depends on. Without a compiler, or wherever
anything about it fails, there is none, and nothing is said: whoever asks has
another form of the same in Python. SEXTET_NATIVE=0 asks for that form.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-w")
LONGEST_COMPILATION = 300  # seconds, on a machine that others use too


def library_path(
    name: str,
    sources: Sequence[Path],
    headers: Sequence[Path] = (),
    *,
    flags: Sequence[str] = (),
    includes: Sequence[str | Path] = (),
    versions: Sequence[str] = (),
) -> Path | None:
    """Returns a compiled library, compiling it if need be.

    Args:
      name: of the library, for people; its file's name begins with it.
      sources: .cc files.
      headers: what they include from this repository.
      flags: of the compiler, besides `FLAGS`.
      includes: folders of other people's headers.
      versions: of those headers.

    Returns:
      The file, whose name differs for all that is compiled otherwise; None
      where there is none.
    """
    if os.environ.get("SEXTET_NATIVE") == "0":
        return None
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return None
    command = [compiler, *FLAGS, *flags]
    try:
        mark = _mark(command, (*headers, *sources), versions)
        path = _folder() / f"{name}_{mark}.so"
        if not path.exists():
            _compile(command, sources, includes, path)
        return path
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None  # RuntimeError: nobody's home folder.


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
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:

        def run(*words: str | Path) -> None:
            subprocess.run(
                [*command, *words],
                capture_output=True,
                check=True,
                timeout=LONGEST_COMPILATION,
            )

        def compile_one(source: Path) -> Path:
            made = Path(folder) / f"{source.stem}.o"
            run("-c", *folders, source, "-o", made)
            return made

        with ThreadPoolExecutor() as pool:  # It takes tens of seconds.
            objects = list(pool.map(compile_one, sources))
        made = Path(folder) / path.name
        run("-shared", *objects, "-o", made)
        # In one step: other processes may be doing the same.
        os.replace(made, path)
