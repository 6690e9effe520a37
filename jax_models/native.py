"""C++ for the CPU where XLA's own code is far from what the machine can do.

The .cc files here are compiled on the user's machine, for that machine, the
first time that a model is traced for a CPU; the result is kept. Without a
compiler, or wherever anything about it fails, `library()` is None and the
layers take their form in plain JAX: slower, the same numbers to rounding.
SEXTET_NATIVE=0 asks for that.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib

HERE = Path(__file__).parent
SOURCES = tuple(
    HERE / f"{name}.cc"
    for name in ("activations", "batch_norm", "depthwise", "norms")
)
HEADERS = HERE / "activations.h", HERE / "native.h"
HANDLERS = (
    "sextet_batch_norm",
    "sextet_batch_norm_slopes",
    "sextet_depthwise",
    "sextet_depthwise_kernel_slope",
    "sextet_gelu",
    "sextet_gelu_slope",
    "sextet_layer_norm",
    "sextet_layer_norm_slopes",
    "sextet_silu",
    "sextet_silu_slope",
)
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-w")
LONGEST_COMPILATION = 300  # seconds, on a machine that others use too


class Library:
    """The compiled handlers, registered with XLA.

    Attributes:
      lanes: channels that are computed at a time; there must be as many.
    """

    def __init__(self, path: Path, mark: str):
        loaded = ctypes.CDLL(str(path))
        self.lanes = loaded.sextet_lanes()
        # What was compiled from other sources has other names, so that no
        # program of the compilation cache meets handlers it does not know.
        self._names = {name: f"{name}_{mark}" for name in HANDLERS}
        for name, target in self._names.items():
            handler = jax.ffi.pycapsule(getattr(loaded, name))
            jax.ffi.register_ffi_target(target, handler, platform="cpu")

    def call(self, name: str, result, *arrays, **options):
        """Returns what handler `name` makes of float32 arrays.

        Args:
          name: one of `HANDLERS`.
          result: its `jax.ShapeDtypeStruct`, or a tuple of them.
          *arrays: its arguments.
          **options: its attributes.
        """
        call = jax.ffi.ffi_call(
            self._names[name], result, vmap_method="sequential"
        )
        return call(*arrays, **options)


def on_cpu() -> bool:
    """Whether layers take the forms that are fast on a CPU.

    Asked while tracing: `lax.platform_dependent` would trace, lower and
    compile every form of every layer.
    """
    return jax.default_backend() == "cpu" and not _PORTABLE.get()


_PORTABLE: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "portable", default=False
)


@contextlib.contextmanager
def portable_forms() -> Iterator[None]:
    """Layers take the form of the backend's library, whatever that is."""
    token = _PORTABLE.set(True)
    try:
        yield
    finally:
        _PORTABLE.reset(token)


@functools.cache
def library() -> Library | None:
    """Returns the compiled code, or None where there is none."""
    # Several devices divide a batch among them; XLA can divide its own
    # operations only.
    if os.environ.get("SEXTET_NATIVE") == "0" or jax.device_count() > 1:
        return None
    if jax.default_backend() != "cpu":
        return None
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return None
    try:
        mark = _mark(compiler)
        path = _folder() / f"{mark}.so"
        if not path.exists():
            _compile(compiler, path)
        return Library(path, mark)
    except (OSError, subprocess.SubprocessError, AttributeError):
        return None


def serves(x: jax.Array) -> bool:
    """Whether there is C++ for numbers like those of `x`."""
    narrow = x.dtype in (jnp.float32, jnp.bfloat16, jnp.float16)
    return narrow and x.size > 0 and on_cpu() and library() is not None


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(cache) / "sextet" / "native"


def _mark(compiler: str) -> str:
    """Hashes all that the compiled code depends on."""
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, check=True, timeout=60
    )
    parts = (
        *(path.read_bytes() for path in (*HEADERS, *SOURCES)),
        version.stdout,
        repr((FLAGS, jaxlib.__version__, _processor())).encode(),
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


def _compile(compiler: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:

        def run(*words: str | Path) -> None:
            subprocess.run(
                [compiler, *FLAGS, *words],
                capture_output=True,
                check=True,
                timeout=LONGEST_COMPILATION,
            )

        def compile_one(source: Path) -> Path:
            made = Path(folder) / f"{source.stem}.o"
            run("-c", "-I", jax.ffi.include_dir(), source, "-o", made)
            return made

        with ThreadPoolExecutor() as pool:  # It takes tens of seconds.
            objects = list(pool.map(compile_one, SOURCES))
        made = Path(folder) / path.name
        run("-shared", *objects, "-o", made)
        # In one step: other processes may be doing the same.
        os.replace(made, path)
