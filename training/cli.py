"""The command line of train.py; no JAX, so it answers at once."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from configs import loading
from configs.common import AUTO
from core import paths
from core.errors import UserError
from training.chips import Slice, parse_slice
from training.config import problems


@dataclasses.dataclass(frozen=True)
class Peers:
    """Several processes that train together, and which of them this is.

    Attributes:
      coordinator: host:port of process 0, where all of them meet.
      num_processes: how many there are.
      process_id: this one's number, from 0.
    """

    coordinator: str
    num_processes: int
    process_id: int


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the command line of train.py says.

    Attributes:
      recipe: the config's path with its variant, as given.
      config: the recipe with every `--config.a.b=` applied, checked.
      workdir: the run folder, on a disk or in a bucket (`core.paths`).
      export: write the logits again although the run has finished.
      all_folds: train one model per fold, each in a folder of its own.
      plan: say what would be done, and draw the learning rates; no training.
      topology: chips that are not here, to compile the plan for; None plans
        for the devices that are.
      command: that was given, as a shell takes it.
      quiet: print the last line alone.
      tensorboard: write event files, too.
      wandb: project in Weights & Biases to log to; "" logs to none.
      peers: the other processes; None where there are none, or where the
        cluster tells.
    """

    recipe: str
    config: ConfigDict
    workdir: Path
    export: bool
    all_folds: bool = False
    plan: bool = False
    peers: Peers | None = None
    topology: Slice | None = None
    command: str = ""
    quiet: bool = False
    tensorboard: bool = False
    wandb: str = ""


def parse(argv: Sequence[str]) -> Arguments:
    """Reads the command line `argv` (without the program's name).

    Raises:
      UserError: a missing or broken config file, an unknown variant, flag or
        field (with the nearest known name), a value of the wrong type, or
        fields that cannot work together (`problems`).
    """
    parser = loading.Parser(
        prog="train.py",
        description="Trains one model from a recipe and writes its logits.",
        epilog="Any field of the recipe: --config.a.b=value, for example "
        "--config.data.root=/data/poses --config.stages[0].epochs=10. "
        "Run the same command again to continue where a run was stopped.",
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="the run folder, which all hosts reach: on a disk or in a "
        "bucket, gs://… or s3://… (default: runs/<recipe>)",
    )
    parser.add_argument(
        "--export",
        action="store_true",
        help="write the logits of a finished run once more",
    )
    parser.add_argument(
        "--all-folds",
        action="store_true",
        help="train one model per fold, in <workdir>/fold-0 and so on, and "
        "join their predictions: out-of-fold logits for every row",
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="only say what would be done, and draw the learning rates into "
        "<workdir>/plan.html",
    )
    parser.add_argument(
        "--topology",
        metavar="CHIPS",
        help="with --plan, compile the step for chips that are not here, such "
        "as v5e:2x4, and tell memory, work and the time it takes at least",
    )
    parser.add_argument(
        "--quiet",
        action="store_true",
        help="print one line at the end, and errors",
    )
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help="write event files into <workdir>/tensorboard, too",
    )
    parser.add_argument(
        "--wandb",
        metavar="PROJECT",
        default="",
        help="log to Weights & Biases, too; WANDB_MODE=offline keeps it here",
    )
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="several processes train as one, and meet at process 0; on TPU "
        "hosts and under srun they find each other without these three flags",
    )
    parser.add_argument("--num-processes", type=int, metavar="N")
    parser.add_argument(
        "--process-id", type=int, metavar="I", help="from 0 to N - 1"
    )
    known, config = loading.parse(parser, argv, problems)
    if config.eval.tta == (AUTO,):  # Of the recipe's views.
        recipe = loading.load(known.config).eval.tta
        config.eval.tta = (AUTO, *(name for name in recipe if name != AUTO))
    topology = known.topology and parse_slice(known.topology)
    if topology and not known.plan:
        raise UserError("--topology only compiles: give --plan with it")
    if known.wandb and importlib.util.find_spec("wandb") is None:
        raise UserError(
            "--wandb needs the package wandb; install it with: pip install "
            "wandb"
        )
    workdir = paths.make_path(
        known.workdir or f"runs/{_default_name(known.config)}"
    )
    paths.require_utf8(workdir, "--workdir")
    return Arguments(
        known.config,
        config,
        workdir,
        known.export,
        known.all_folds,
        known.plan,
        _peers(known.coordinator, known.num_processes, known.process_id),
        topology or None,
        shlex.join(["python", "train.py", *argv]),
        known.quiet,
        known.tensorboard,
        known.wandb,
    )


def _peers(
    coordinator: str | None, count: int | None, index: int | None
) -> Peers | None:
    given = [value is not None for value in (coordinator, count, index)]
    if not any(given):
        return None
    if not all(given):
        raise UserError(
            "--coordinator, --num-processes and --process-id belong together; "
            "give all three, or none on a TPU host or under srun"
        )
    if not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(
            f"--coordinator is {coordinator!r}; give the host of process 0 "
            "and a free port, such as 10.0.0.2:8476"
        )
    if not 0 <= index < count:
        raise UserError(
            f"--process-id is {index}: with --num-processes={count} it runs "
            f"from 0 to {count - 1}"
        )
    return Peers(coordinator, count, index)


def _default_name(recipe: str) -> str:
    path, _, variant = recipe.partition(":")
    return Path(path).stem + (f"-{variant}" if variant else "")
