"""`python -m studies`: many runs of train.py, and what they show.

python -m studies grid --config=configs/tinyvit.py:demo \\
    --grid 'mixing.prob=0,.5' --seeds 3 --workdir=runs/mixing
python -m studies transfer --config=configs/efficientnet_lite0.py \\
    --config.data.root=/data/photos --workdir=runs/transfer

The same command again goes on where it was stopped. Exit codes as those of
train.py; 1 where a run failed and the others did not.
"""

from __future__ import annotations

if __name__ == "__main__":
    from core import output, signals

    output.install()
    signals.install()  # First of all: the imports below take seconds.

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from configs import loading
from core import paths, signals
from core.errors import UserError, exit_on_user_error
from training.config import problems

# Each has a module, which is imported only when it is asked for.
COMMANDS = {
    "grid": "runs over a grid of fields, and the effect of each",
    "transfer": "the grid of transfer learning",
}


def main(arguments: Sequence[str]) -> int:
    """Parses the command line and does what it says.

    Returns:
      The exit code.

    Raises:
      SystemExit: a user error.
    """
    with exit_on_user_error():
        if arguments[:1] and arguments[0] in COMMANDS:
            return _grid(arguments[0], arguments[1:])
        if arguments[:1] not in ([], ["--help"], ["-h"]):
            raise UserError(
                f"there is no study {arguments[0]!r}; choose one of "
                f"{', '.join(COMMANDS)}"
            )
        print(__doc__.partition("\n\n")[0])
        for name, what in COMMANDS.items():
            print(f"  {name:10} {what} (python -m studies {name} --help)")
    return 0


def parser(command: str, description: str) -> loading.Parser:
    """Returns a parser with what all commands have."""
    made = loading.Parser(
        prog=f"python -m studies {command}",
        description=description,
        epilog="Any field of the recipe, for all runs: --config.a.b=value. "
        "The same command again goes on where it was stopped.",
    )
    made.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="of the study",
    )
    return made


def parse(
    made: loading.Parser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, list[str], Path]:
    """Returns the flags, the `--config.a.b=value` among them, and the workdir.

    Raises:
      UserError: what is wrong in them.
    """
    known, _ = loading.parse(made, arguments, problems)
    overrides = [
        word
        for word in arguments
        if word.startswith(("--config.", "--noconfig."))
    ]
    workdir = paths.make_path(known.workdir)
    if paths.is_remote(workdir):
        raise UserError(
            f"--workdir is {known.workdir}, a bucket; a study needs a folder "
            "on a disk"
        )
    return known, overrides, Path(workdir).absolute()


def _grid(command: str, arguments: Sequence[str]) -> int:
    made = parser(
        command,
        "Trains every combination of levels under the same seeds, and tells "
        "what each change is worth: a page, a csv, a sentence.",
    )
    if command == "grid":
        made.add_argument(
            "--grid",
            action="append",
            default=[],
            metavar="FIELD=A,B",
            help="an axis: a field of the recipe and its values, the first "
            "of which is the baseline; `config=…` varies the recipe",
        )
        made.add_argument(
            "--arms",
            action="append",
            default=[],
            metavar="TOML",
            help="axes whose levels set several fields, see docs/studies.md",
        )
    made.add_argument(
        "--seeds",
        type=int,
        default=3,
        metavar="N",
        help="runs of each combination, from config.seed on (default: 3)",
    )
    made.add_argument(
        "--metric",
        default="",
        help="to compare (default: the one that ranks checkpoints)",
    )
    made.add_argument(
        "--all-folds",
        action="store_true",
        help="train one model per fold, so that every row validates",
    )
    made.add_argument(
        "--report",
        action="store_true",
        help="train nothing: write the page of what is finished",
    )
    known, overrides, workdir = parse(made, arguments)
    if known.seeds < 1:
        raise UserError(f"--seeds is {known.seeds}; take 1 or more")
    from studies import axes as axes_lib
    from studies import findings, grid, transfer

    config = loading.load(known.config)
    loading.apply_overrides(config, overrides)
    if command == "transfer":
        axes = transfer.axes(config)
    else:
        axes = [axes_lib.parse_grid(text) for text in known.grid]
        for path in known.arms:
            axes += axes_lib.read_arms(path)
        if not axes:
            raise UserError(
                "there is nothing to compare; give --grid FIELD=A,B or --arms "
                "FILE.toml"
            )
    cells = axes_lib.make_cells(known.config, overrides, axes, problems)
    seeds = range(config.seed, config.seed + known.seeds)
    flags = ["--all-folds"] if known.all_folds else []
    study = grid.Grid(cells, seeds, workdir, flags)
    failures, stop = [], signals.StopSignals()
    if not known.report:
        with stop:
            failures = grid.run(study, stop)
        if stop.received:
            print("stopped; the same command continues")
            return signals.exit_code(stop.received)
    title = "Transfer study" if command == "transfer" else "Study"
    found = findings.write(study, axes, title, known.metric, failures)
    for sentence in found.sentences:
        print(sentence)
    print(f"page in {found.page}, numbers in {workdir / findings.CSV}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
