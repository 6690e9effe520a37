"""C++ for the CPU where XLA's own code is far from what the machine can do.

The .cc files here are compiled (core/native_build.py) when a model is first
traced for a CPU, or in the background before that. Where there is nothing
compiled, `library()` is None and the layers take their form in plain JAX:
slower, the same numbers to rounding.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib

from core import native_build

HERE = Path(__file__).parent


def code(
    name: str,
    sources: Sequence[Path],
    headers: Sequence[str] = (),
    flags: Sequence[str] = (),
) -> native_build.Library:
    """Returns C++ that XLA may call, ready to be compiled.

    Args:
      name: of the library.
      sources: .cc files; they may include the headers of this folder.
      headers: which they do, besides handler.h and native.h.
      flags: of the compiler, besides its usual ones.
    """
    return native_build.Library(
        name,
        sources,
        [HERE / header for header in ("handler.h", "native.h", *headers)],
        flags=flags,
        includes=[HERE, jax.ffi.include_dir()],
        versions=[jaxlib.__version__],
    )


CODE = code(
    "models",
    [
        HERE / f"{name}.cc"
        for name in (
            "activations",
            "batch_norm",
            "convolution",
            "depthwise",
            "linear",
            "mlp",
            "norms",
            "window_attention",
        )
    ],
    headers=["activations.h", "norms.h", "gemm.h", "small_gemm.h"],
)
HANDLERS = (
    "sextet_batch_norm",
    "sextet_batch_norm_known",
    "sextet_batch_norm_slopes",
    "sextet_conv",
    "sextet_depthwise",
    "sextet_depthwise_kernel_slope",
    "sextet_gelu",
    "sextet_gelu_slope",
    "sextet_layer_norm",
    "sextet_layer_norm_slopes",
    "sextet_linear",
    "sextet_mlp",
    "sextet_silu",
    "sextet_silu_slope",
    "sextet_window_attention",
    "sextet_window_attention_slopes",
)


class Library:
    """Compiled handlers, registered with XLA.

    Args:
      path: of the compiled library.
      handlers: their names in it.
    """

    def __init__(self, path: Path, handlers: Sequence[str]):
        loaded = self._loaded = ctypes.CDLL(str(path))
        # What was compiled from other sources has other names, so that no
        # program of the compilation cache meets handlers it does not know.
        self._names = {name: f"{name}_{path.stem}" for name in handlers}
        for name, target in self._names.items():
            handler = jax.ffi.pycapsule(getattr(loaded, name))
            jax.ffi.register_ffi_target(target, handler, platform="cpu")

    @property
    def lanes(self) -> int:
        """Channels that the models' code takes at a time; its least."""
        return self._loaded.sextet_lanes()

    def call(self, name: str, result, *arrays, in_place=None, **options):
        """Returns what handler `name` makes of arrays, as float32.

        Args:
          name: one of its handlers.
          result: its `jax.ShapeDtypeStruct`, or a tuple of them.
          *arrays: its arguments.
          in_place: which results, by number, take the place of which
            arguments: {argument: result}.
          **options: its attributes.
        """
        call = jax.ffi.ffi_call(
            self._names[name],
            result,
            vmap_method="sequential",
            input_output_aliases=in_place,
        )
        # Parameters that a user has narrowed, beside wide images.
        wide = [array.astype(jnp.float32) for array in arrays]
        return call(*wide, **options)


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


def begin_compiling(*others: native_build.Library) -> None:
    """Begins to compile what `load` will wait for, where it is of use.

    It asks for devices: JAX must have met the other processes before.

    Args:
      *others: what is needed besides the models' own.
    """
    if _is_of_use():
        for code in (CODE, *others):
            code.begin()


def lacks_compiler() -> bool:
    """Whether a C++ compiler would make models faster, and there is none."""
    asked = os.environ.get("SEXTET_NATIVE") != "0"
    return asked and _is_of_use() and native_build.compiler() is None


def _is_of_use() -> bool:
    # Several devices divide a batch among them; XLA can divide its own
    # operations only.
    return jax.device_count() == 1 and jax.default_backend() == "cpu"


def load(code: native_build.Library, handlers: Sequence[str]) -> Library | None:
    """Returns the handlers of some `code`, or None where there are none."""
    path = code.path() if _is_of_use() else None
    try:
        return None if path is None else Library(path, handlers)
    except (OSError, AttributeError):
        return None


@functools.cache
def library() -> Library | None:
    """Returns the models' handlers, or None where there are none."""
    return load(CODE, HANDLERS)


def serves(x: jax.Array) -> bool:
    """Whether there is C++ for numbers like those of `x`."""
    narrow = x.dtype in (jnp.float32, jnp.bfloat16, jnp.float16)
    return narrow and x.size > 0 and on_cpu() and library() is not None
