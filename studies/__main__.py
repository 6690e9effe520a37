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
    "tune": "a search over fields of a recipe, with Optuna",
    "lr_range": "the loss at ever higher learning rates, and one to take",
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
            command, *rest = arguments
            if command == "tune":
                return _tune(rest)
            if command == "lr_range":
                return _lr_range(rest)
            return _grid(command, rest)
        if arguments[:1] not in ([], ["--help"], ["-h"]):
            raise UserError(
                f"there is no study {arguments[0]!r}; choose one of "
                f"{', '.join(COMMANDS)}"
            )
        print("usage: python -m studies STUDY [--help] ...")
        for name, what in COMMANDS.items():
            print(f"  {name:10} {what}")
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
    else:
        made.add_argument(
            "--axes",
            metavar="A,B",
            help="what to vary of start, augmentation, upscaling and views "
            "(default: all)",
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
        names = known.axes.split(",") if known.axes else transfer.NAMES
        axes = transfer.axes(config, names)
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
    study.check()
    failures, stop = [], signals.StopSignals()
    if not known.report:
        study.check_weights()
        with stop:
            failures = grid.run(study, stop)
        if stop.received:
            return _stopped(stop)
    title = "Transfer study" if command == "transfer" else "Study"
    found = findings.write(study, axes, title, known.metric, failures)
    for sentence in found.sentences:
        print(sentence)
    print(f"page in {found.page}, numbers in {workdir / findings.CSV}")
    return 1 if failures else 0


def _tune(arguments: Sequence[str]) -> int:
    made = parser(
        "tune",
        "Searches fields of a recipe with Optuna, stops runs that are worse "
        "than the median, and writes the best config as a recipe. Several "
        "processes with one --workdir share a search.",
    )
    made.add_argument(
        "--search",
        action="append",
        default=[],
        metavar="FIELD=SPACE",
        help="'field=1e-4..1e-2 log', 'field=0.0..1.0', 'field=a,b'",
    )
    made.add_argument("--trials", type=int, default=30, metavar="N")
    made.add_argument(
        "--storage",
        metavar="FILE",
        help="of the search, also the URL of a database as Optuna takes it "
        "(default: WORKDIR/search.journal)",
    )
    known, overrides, workdir = parse(made, arguments)
    from studies import space, tune

    if not known.search or known.trials < 1:
        raise UserError(
            "give --search 'stages[0].learning_rate=1e-4..1e-2 log' or the "
            "like, and at least one of --trials"
        )
    config = loading.load(known.config)
    loading.apply_overrides(config, overrides)
    search = tune.Search(
        known.config,
        overrides,
        config,
        [space.parse_parameter(text, config) for text in known.search],
        workdir,
        known.storage or str(workdir / tune.JOURNAL),
        known.trials,
        problems,
    )
    with signals.StopSignals() as stop:
        study = tune.run(search, stop)
    best = tune.write_best(search, study)
    if best is not None:
        print(f"best config in {best}: python train.py --config={best}")
    return _stopped(stop) if stop.received else 0


def _lr_range(arguments: Sequence[str]) -> int:
    made = parser(
        "lr_range",
        "Trains the first stage of a recipe for a few batches at ever higher "
        "rates, plots the loss, and suggests a rate.",
    )
    made.add_argument("--low", type=float, default=1e-6, metavar="RATE")
    made.add_argument("--high", type=float, default=1.0, metavar="RATE")
    made.add_argument("--steps", type=int, default=100, metavar="N")
    known, overrides, workdir = parse(made, arguments)
    if not 0 < known.low < known.high or known.steps < 20:
        raise UserError(
            "--low must be above 0 and below --high, and --steps 20 or more"
        )
    from studies import lr_range

    with signals.StopSignals() as stop:
        page = lr_range.run(
            known.config,
            overrides,
            workdir,
            known.low,
            known.high,
            known.steps,
            stop,
        )
    if page is None:
        return _stopped(stop)
    print(f"page in {page}")
    return 0


def _stopped(stop: signals.StopSignals) -> int:
    print("stopped; the same command continues")
    return signals.exit_code(stop.received)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
