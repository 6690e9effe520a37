"""JAX as every run wants it: quiet, and compiling each step only once."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags, logging

from core.errors import UserError
from core.hardware import keep_freed_memory, usable_cores
from jax_models import cpu_kernels
from training.cli import Peers

# Compiled steps of many recipes fit; the least recently used go first.
COMPILATION_CACHE_BYTES = 4 * 2**30

# After so long without a sign, another process counts as gone.
PATIENCE_SECONDS = 100


def start(cache_dir: str) -> Path:
    """Points JAX at the persistent compilation cache.

    Args:
      cache_dir: config.cache_dir; `~` is expanded.

    Returns:
      The folder for everything that is worth keeping between runs.

    Raises:
      UserError: it cannot be written.
    """
    cache = Path(cache_dir).expanduser().absolute()
    compiled = cache / "compiled"
    try:
        compiled.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write the cache folder {cache}: {error.strerror}; set "
            "--config.cache_dir to one that can be written"
        ) from error
    # The cache of a CPU holds code for that CPU's instructions: a folder that
    # several machines share must not mix them, so XLA's own check is left on.
    jax.config.update("jax_compilation_cache_dir", str(compiled))
    jax.config.update("jax_compilation_cache_max_size", COMPILATION_CACHE_BYTES)
    # All programs: a start meets tens of small ones, which take seconds.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    keep_freed_memory()
    # grain's worker pool asks absl's global flags, which we do not parse.
    flags.FLAGS.mark_as_parsed()
    # Orbax tells at length of waits that a user can do nothing about, and
    # shows the traceback of every error that it also raises.
    logging.set_verbosity(logging.FATAL)
    # C++ notes on start-up say nothing that a user could act on.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return cache


def stay_on_cpu() -> None:
    """Keeps JAX off all accelerators here: only a compiler is wanted.

    To be called before anything asks for devices.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"  # Also no cluster is looked for.
    jax.config.update("jax_platforms", "cpu")
    # What is compiled for other devices cannot be read back without them.
    jax.config.update("jax_enable_compilation_cache", False)


def connect(peers: Peers | None) -> None:
    """Makes this process one of several that train together, if it is one.

    On TPU hosts and under `srun`, JAX finds out by itself who the others are;
    elsewhere the command line says so. Call it before anything asks for
    devices; further calls do nothing.

    Args:
      peers: from the command line.

    Raises:
      UserError: the others cannot be reached.
    """
    if jax.distributed.is_initialized():
        return
    if peers is None and not _is_in_a_cluster():
        return
    # SIGTERM is answered by core/signals.py.
    jax.config.update("jax_enable_preemption_service", False)
    named = () if peers is None else dataclasses.astuple(peers)
    try:
        jax.distributed.initialize(
            *named,
            heartbeat_timeout_seconds=PATIENCE_SECONDS,
            shutdown_timeout_seconds=PATIENCE_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        if peers is None and isinstance(error, ValueError):
            return  # A TPU host that tells nothing of others is alone.
        where = peers.coordinator if peers else "the cluster's first host"
        raise UserError(
            f"cannot meet the other processes at {where} "
            f"({str(error).splitlines()[0][:200]}); start all of them within "
            "five minutes, with a host and port that each of them can reach"
        ) from error


def begin_compiling() -> None:
    """Compiles C++ in the background while Python imports and traces.

    It has nothing to do after `make setup`, or a first start. Call it after
    `connect`, for it asks for devices.
    """
    from input_pipeline.backends import cpp

    cpp.begin_compiling()
    cpu_kernels.begin_build()


def _is_in_a_cluster() -> bool:
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    slurm = "SLURM_STEP_NODELIST" in os.environ  # Absent outside of srun.
    if slurm and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        return True
    devices = ("/dev/accel0", "/dev/vfio/0")
    tpu = any(os.path.exists(device) for device in devices)
    return tpu and importlib.util.find_spec("libtpu") is not None


def compute_dtype(asked: str) -> jnp.dtype:
    """Returns the dtype of activations.

    Args:
      asked: config.dtype; "auto" is bfloat16, and float32 for a CPU
        (`cpu_kernels.for_mesh`), where bfloat16 took longer to compute and to
        compile.
    """
    if asked == "auto":
        asked = "float32" if cpu_kernels.platform() == "cpu" else "bfloat16"
    return jnp.dtype(asked)


def default_workers(asked: int) -> int:
    """Returns how many loader processes to start.

    Args:
      asked: config.workers; -1 leaves it to the machine.
    """
    if asked >= 0:
        return asked
    cores = usable_cores()
    # On a CPU the step itself takes every core; workers would only compete.
    return 0 if jax.default_backend() == "cpu" else min(max(cores - 1, 1), 16)
