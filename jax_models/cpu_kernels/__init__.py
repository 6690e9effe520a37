"""What layers compute on a CPU in code of ours: the only door to it.

Each function computes the same everywhere, to rounding. On a CPU it takes a
kernel in C++ or in JAX of its own where XLA is slow, and XLA's operations
elsewhere; dispatch.py decides. benchmarks/kernels.py measures what each kernel
is worth.
"""

from jax_models.cpu_kernels.adamw import adamw, global_norm, supports_adamw
from jax_models.cpu_kernels.batch_norm import batch_norm
from jax_models.cpu_kernels.conv import conv_general_dilated
from jax_models.cpu_kernels.dispatch import (
    KERNELS,
    begin_build,
    lacks_compiler,
    without,
    xla_only,
)
from jax_models.cpu_kernels.mlp import residual_mlp, supports_residual_mlp
from jax_models.cpu_kernels.window_attention import window_attention
from jax_models.cpu_kernels.winograd import (
    conv_upsampled,
    supports_conv_upsampled,
)
from jax_models.target import for_mesh, for_platform, platform

__all__ = [
    "KERNELS",
    "adamw",
    "batch_norm",
    "begin_build",
    "conv_general_dilated",
    "conv_upsampled",
    "for_mesh",
    "for_platform",
    "global_norm",
    "lacks_compiler",
    "platform",
    "residual_mlp",
    "supports_adamw",
    "supports_conv_upsampled",
    "supports_residual_mlp",
    "window_attention",
    "without",
    "xla_only",
]
