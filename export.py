"""Exports a trained run for other runtimes.

    python export.py --run runs/tinyvit --out exported/tinyvit
    python export.py --run runs/tinyvit --out exported/tinyvit --format onnx

By default StableHLO, which `jax.export.deserialize` reads without this
repository, for CPUs, NVIDIA GPUs and TPUs, and the weights as .safetensors in
PyTorch's names. `model.json` beside them tells what goes in and what comes
out. Exit codes: 0 done; 2 a mistake in the command, or a model that a format
cannot hold; 75 the run is in a bucket that does not answer now.
"""

from __future__ import annotations

if __name__ == "__main__":
    from core import output, signals

    output.install()
    signals.install()  # The imports below take seconds.

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from configs import loading
from core import paths
from core.errors import exit_on_user_error


def main(argv: Sequence[str]) -> int:
    """Parses the command line and exports.

    Returns:
      0.

    Raises:
      SystemExit: a mistake in the command, told in one sentence.
    """
    with exit_on_user_error(), paths.reaching(argv):
        known = make_parser().parse_args(argv)
        folder = paths.make_path(known.out)
        wanted = known.format or ["stablehlo", "safetensors"]
        for line in export(known.run, folder, wanted):
            print(line)
    return 0


def make_parser() -> loading.Parser:
    """Returns the parser of the command line."""
    parser = loading.Parser(
        prog="export.py",
        description="Exports the best checkpoint of a run.",
    )
    parser.add_argument("--run", required=True, metavar="DIR")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument(
        "--format",
        action="append",
        choices=("stablehlo", "safetensors", "onnx"),
        help="may be given several times (default: stablehlo, safetensors)",
    )
    return parser


def export(
    run_folder: str, folder: Path, formats: Sequence[str]
) -> Iterator[str]:
    """Yields a line on each file that is written.

    Args:
      run_folder: of a run with an evaluated checkpoint.
      folder: where the files go.
      formats: keys of `training.export.WRITERS`.

    Raises:
      UserError: it is no such folder, or a format cannot hold the model.
    """
    from configs import common
    from training import export as formats_lib
    from training import runtime, saved_run
    from training.multihost import sharding

    runtime.start(common.CACHE_DIR)
    run = saved_run.open_run(paths.make_path(run_folder), sharding.make_mesh())
    model = run.task.abstract_model.merge(*run.weights)
    model.eval()
    exported = formats_lib.Exported(run.task, model, run.spec, folder)
    yield f"{formats_lib.describe(exported)}: what goes in and what comes out"
    for name in dict.fromkeys(formats):
        written = formats_lib.WRITERS[name](exported)
        yield f"{written}: {paths.size(written) / 1e6:,.1f} MB"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
