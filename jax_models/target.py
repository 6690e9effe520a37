"""Which devices a computation is traced for, and what follows for its shapes.

JAX's default device, unless `for_platform` or `for_mesh` name others: a plan
compiles for chips that are not here.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax
from jaxtyping import Array, Float

_target: contextvars.ContextVar[tuple[str, int] | None] = (
    contextvars.ContextVar("target", default=None)
)


@contextlib.contextmanager
def for_platform(name: str, num_devices: int) -> Iterator[None]:
    """Traces layers for these devices, whatever JAX's default backend is.

    Args:
      name: of the devices' platform: "cpu", "gpu", "tpu".
      num_devices: that share the computation, in all processes. XLA divides
        its own operations among devices, but no C++ of ours.
    """
    token = _target.set((name, num_devices))
    try:
        yield
    finally:
        _target.reset(token)


def for_mesh(
    mesh: jax.sharding.Mesh,
) -> contextlib.AbstractContextManager[None]:
    """`for_platform` for the devices of a mesh; also a decorator.

    Inside of a jitted function, where it holds whenever JAX traces that:

        @jax.jit
        @cpu_kernels.for_mesh(mesh)
        def train_step(state, batch): ...
    """
    return for_platform(mesh.devices.flat[0].platform, mesh.size)


def platform() -> str:
    """Returns the platform that is traced for."""
    target = _target.get()
    return jax.default_backend() if target is None else target[0]


def is_single_cpu() -> bool:
    """Whether what is traced runs on one CPU device alone."""
    target = _target.get() or (jax.default_backend(), jax.device_count())
    return target == ("cpu", 1)


def two_axes(x: Float[Array, "*B C"]) -> Float[Array, ...]:
    """Returns `x` as XLA's backend likes it for work on single vectors.

    On a CPU `[B, C]`: there the gradient of a product with more axes takes
    twice as long, and no loop over both shapes is vectorised. Elsewhere as it
    is: a TPU pads the last two axes to tiles, so that joining axes moves all
    of the numbers (docs/tpu_vm.md).
    """
    if platform() != "cpu" or x.ndim == 0:
        return x
    return x.reshape(-1, x.shape[-1])
