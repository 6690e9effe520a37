"""What every test relies on: a CPU, compiled code kept, parsed absl flags."""

import os
from pathlib import Path

# Before the first import of JAX, which reads them once.
os.environ["JAX_PLATFORMS"] = "cpu"
_CACHE = Path("~/.cache/sextet/tests").expanduser()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2**30))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

# Each process of pytest-xdist keeps to cores of its own: XLA's threads would
# spin for cores that another process computes on.
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if _WORKER and hasattr(os, "sched_setaffinity"):
    _WORKERS = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    _CORES = sorted(os.sched_getaffinity(0))
    if own := _CORES[int(_WORKER.removeprefix("gw")) :: _WORKERS]:
        os.sched_setaffinity(0, own)

from absl import flags  # noqa: E402 (after the environment is set)
from jaxtyping import install_import_hook  # noqa: E402

from tests import typechecker  # noqa: E402

# Shapes and dtypes in signatures are checked at every call, in the tests.
install_import_hook(
    [
        "input_pipeline.transforms",
        "jax_models",
        "metrics",
        "training.tasks.embedding_batch",
        "training.tasks.losses",
        "training.tasks.metric_losses",
        "training.tasks.mining",
        "training.tasks.segmentation_losses",
        "training.tasks.segmentation_evaluator",
    ],
    f"{typechecker.__name__}.check",
)

flags.FLAGS.mark_as_parsed()  # grain's worker pool asks.
