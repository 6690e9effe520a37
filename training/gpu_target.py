"""What XLA must know of an NVIDIA card to compile for it without having it.

Limits of the SXM modules, from XLA's own descriptions of them
(xla/backends/gpu/target_config/specs in github.com/openxla/xla). Text of the
protocol buffer `stream_executor.GpuTargetConfigProto`.
"""

from __future__ import annotations

from collections.abc import Mapping

_COMMON = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49152,
    "threads_per_core_limit": 2048,
    "block_dim_limit_x": 2147483647,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
}
_HOPPER = {
    **_COMMON,
    "shared_memory_per_core": 233472,
    "shared_memory_per_block_optin": 232448,
    "core_count": 132,
    "fpus_per_core": 128,
    "l2_cache_size": 52428800,
    "clock_rate_ghz": 1.98,
}
_CARDS: Mapping[str, tuple[str, int, Mapping[str, float]]] = {
    "a100": (
        "NVIDIA A100-SXM4-80GB",
        8,
        {
            **_COMMON,
            "shared_memory_per_core": 167936,
            "shared_memory_per_block_optin": 166912,
            "core_count": 108,
            "fpus_per_core": 64,
            "l2_cache_size": 41943040,
            "clock_rate_ghz": 1.41,
            "memory_bandwidth": 2039040000000,
            "device_memory_size": 85100068864,
        },
    ),
    "h100": (
        "NVIDIA H100 80GB HBM3",
        9,
        {
            **_HOPPER,
            "memory_bandwidth": 3352320000000,
            "device_memory_size": 84942979072,
        },
    ),
    "h200": (
        "NVIDIA H200 141GB HBM3e",
        9,
        {
            **_HOPPER,
            "memory_bandwidth": 4800000000000,
            "device_memory_size": 151397597184,
        },
    ),
}


def target_config(kind: str) -> str:
    """Returns the description of a card of `chips.CHIPS`."""
    name, capability, limits = _CARDS[kind]
    lines = [f"  {field}: {value}" for field, value in limits.items()]
    return "\n".join(
        (
            "gpu_device_info {",
            *lines,
            f"  cuda_compute_capability {{ major: {capability} }}",
            "}",
            'platform_name: "CUDA"',
            "dnn_version_info { major: 9 minor: 10 }",
            "runtime_version { major: 12 minor: 8 }",
            f'device_description_str: "{name}"',
        )
    )
