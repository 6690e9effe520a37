"""JAX as every run wants it: quiet, and compiling each step only once."""

from __future__ import annotations

import os
from pathlib import Path

import jax
from absl import flags, logging

from errors import UserError
from machine import usable_cores

# Compiled steps of many recipes fit; the least recently used go first.
COMPILATION_CACHE_BYTES = 4 * 2**30


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
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # grain's worker pool asks absl's global flags, which we do not parse.
    flags.FLAGS.mark_as_parsed()
    # Orbax tells at length of waits that a user can do nothing about.
    logging.set_verbosity(logging.ERROR)
    # C++ notes on start-up say nothing that a user could act on.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return cache


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
