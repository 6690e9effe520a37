"""Which implementation a layer takes, and how JAX calls the C++ ones.

A layer is traced for the platform that its computation will run on
(jax_models/target.py). On a CPU, some layers have JAX code of their own,
because XLA's is tens of times slower there; on a CPU with one device, most of
those are in C++ (*.cc in this folder), compiled by `make setup` or at first
use. What cannot be compiled is replaced by JAX code: slower, and equal up to
rounding.

Asked while tracing, since `lax.platform_dependent` would trace, lower and
compile every implementation of every layer. So a function that asks must not
be jitted by itself: JAX would keep what the first caller got.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib

from core import native_build
from jax_models import target

HERE = Path(__file__).parent
# The handlers use XLA's C interface: its C++ header (ffi.h) takes the compiler
# several seconds for each file.
CODE = native_build.Library(
    "models",
    sorted(HERE.glob("*.cc")),
    sorted(HERE.glob("*.h")),
    flags=["-fno-math-errno"],  # Vectorises square roots.
    includes=[jax.ffi.include_dir()],
    versions=[jaxlib.__version__],
)
# What `without` switches off, and its handlers in C++.
KERNELS: Mapping[str, tuple[str, ...]] = {
    "adamw": ("sextet_adamw", "sextet_global_norm"),
    "batch_norm": ("sextet_batch_norm", "sextet_batch_norm_grad"),
    "conv": (
        "sextet_conv",
        "sextet_conv_images_grad",
        "sextet_conv_kernel_grad",
    ),
    "depthwise": ("sextet_depthwise", "sextet_depthwise_kernel_grad"),
    "mlp": ("sextet_mlp",),
    "window_attention": (
        "sextet_window_attention",
        "sextet_window_attention_grad",
    ),
    "winograd": (
        "sextet_winograd",
        "sextet_winograd_images_grad",
        "sextet_winograd_kernel_grad",
    ),
}

_disabled: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar(
    "disabled", default=frozenset()
)


@contextlib.contextmanager
def without(*kernels: str) -> Iterator[None]:
    """Traces layers as if some of `KERNELS` did not exist."""
    unknown = set(kernels) - set(KERNELS)
    if unknown:
        raise ValueError(f"no kernel is called {', '.join(sorted(unknown))}")
    token = _disabled.set(_disabled.get() | set(kernels))
    try:
        yield
    finally:
        _disabled.reset(token)


def xla_only() -> contextlib.AbstractContextManager[None]:
    """Traces layers to XLA's own operations, whose FLOPs XLA can count."""
    return without(*KERNELS)


def for_cpu(kernel: str) -> bool:
    """Whether to take the CPU's implementation of one of `KERNELS`."""
    return target.platform() == "cpu" and kernel not in _disabled.get()


def in_cpp(kernel: str, *arrays: jax.Array) -> bool:
    """Whether one of `KERNELS` takes these arrays in C++.

    That computes in float32: narrower arrays are converted, float64 is not
    for it.
    """
    return (
        for_cpu(kernel)
        and all(
            array.size > 0
            and array.dtype in (jnp.float32, jnp.bfloat16, jnp.float16)
            for array in arrays
        )
        and target.is_single_cpu()
        and _library() is not None
    )


class _Library:
    """The compiled handlers, registered with XLA."""

    def __init__(self, path: Path):
        self.loaded = ctypes.CDLL(str(path))
        # Code from other sources has other names, so that no program in the
        # compilation cache meets handlers that it was not compiled for.
        self.targets = {
            name: f"{name}_{path.stem}"
            for handlers in KERNELS.values()
            for name in handlers
        }
        for name, unique in self.targets.items():
            handler = jax.ffi.pycapsule(getattr(self.loaded, name))
            jax.ffi.register_ffi_target(unique, handler, platform="cpu")


@functools.cache
def _library() -> _Library | None:
    path = CODE.path()
    if path is None:
        return None
    try:
        return _Library(path)
    except (OSError, AttributeError) as error:
        print(
            f"warning: cannot load {path} ({error}); going on without this "
            "C++ library, which is slower. Delete the file to build it again",
            file=sys.stderr,
        )
        return None


def lanes() -> int:
    """Numbers in one of the C++ code's vectors: 4, 8 or 16."""
    return _library().loaded.sextet_lanes()


def call(
    handler: str,
    result: Any,
    *arrays: jax.Array,
    aliases: Mapping[int, int] | None = None,
    **attributes: Any,
) -> Any:
    """Calls a C++ handler, where `in_cpp` holds.

    Args:
      handler: its name in `KERNELS`.
      result: `jax.ShapeDtypeStruct` of its result, or a sequence of them.
      *arrays: its arguments, converted to float32.
      aliases: {argument: result}, for results that overwrite an argument.
      **attributes: its static numbers and NumPy arrays.
    """
    function = jax.ffi.ffi_call(
        _library().targets[handler],
        result,
        vmap_method="sequential",
        input_output_aliases=dict(aliases or {}),
    )
    return function(
        *(array.astype(jnp.float32) for array in arrays), **attributes
    )


def begin_build() -> None:
    """Begins to compile in the background, where models will need it.

    Asks JAX for devices: in a cluster, only once that is connected.
    """
    if target.is_single_cpu():
        CODE.begin()


def lacks_compiler() -> bool:
    """Whether a C++ compiler would make models faster, and there is none."""
    wanted = os.environ.get("SEXTET_NATIVE") != "0" and target.is_single_cpu()
    return wanted and native_build.compiler() is None
