"""`python -m stacking`: runs in, submission and out-of-fold scores out.

python -m stacking --runs 'runs/*' --out runs/stack
python -m stacking predict --stack runs/stack --runs 'runs/*' --out new.csv
"""

from __future__ import annotations

if __name__ == "__main__":
    from core import output, signals

    output.install()
    signals.install()  # First of all: the imports below take seconds.

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.status import Status
from threadpoolctl import threadpool_limits

from core.errors import exit_on_user_error
from core.hardware import usable_cores
from core.paths import reaching
from reports.ensemble import title
from stacking import blend, boosters, decision_rule, pipeline, submission
from stacking.argument_types import number, seed
from stacking.nested_cv import OUTER_FOLDS
from stacking.score_table import score_table
from stacking.stack_model import Settings


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and does what it says."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    with exit_on_user_error(), reaching(arguments):
        if arguments[:1] == ["predict"]:
            _predict(_predict_parser().parse_args(arguments[1:]))
        else:
            _stack(_stack_parser().parse_args(arguments))


def _one_blas_thread() -> threadpool_limits:
    """Jobs run side by side instead: no sum depends on how many threads."""
    return threadpool_limits(limits=1, user_api="blas")


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs",
        nargs="+",
        action="extend",
        required=True,
        metavar="FOLDER",
        help="run folders with logits/, or globs of them",
    )
    parser.add_argument(
        "--sample-submission",
        metavar="CSV",
        help="columns and row order of the submission, or 'none' for the "
        "rows in their own order; default: the one the runs were trained "
        "beside",
    )
    parser.add_argument(
        "--format",
        choices=submission.FORMATS,
        help="what the submission holds (default: what the sample has "
        "columns for)",
    )
    parser.add_argument(
        "--threads",
        type=_positive,
        default=usable_cores(),
        help="use at most so many (default: all cores)",
    )


def _local(text: str) -> Path:
    """An argparse type: a path on a disk."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text} is in a bucket, where a stack cannot be kept; name a "
            "local path"
        )
    return Path(text)


_positive = number(int, 1, 1_000_000)
_seconds = number(float, 0, 1_000_000)


def _stack_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stacking",
        description="Stacks the logits of several runs: out-of-fold scores, a "
        "submission, and a report. `python -m stacking predict --help` is "
        "for predicting again.",
    )
    _common(parser)
    parser.add_argument("--out", required=True, type=_local, metavar="FOLDER")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument(
        "--blend",
        choices=blend.KINDS,
        default=Settings.blend,
        help="reference: .4 CatBoost, .3 LightGBM, .3 soft vote; guarded: "
        "the same, or the soft vote where one model alone beats it; auto: "
        "chosen on nested folds (default: %(default)s)",
    )
    parser.add_argument(
        "--decision",
        choices=decision_rule.RULES,
        default="argmax",
        help="how the blend's probabilities become an answer: the largest, "
        "corrected for class priors, or with a threshold per class "
        "(default: argmax)",
    )
    parser.add_argument(
        "--boosters",
        default=",".join(boosters.KINDS),
        help="which take part, with commas, or 'none' (default: %(default)s)",
    )
    parser.add_argument(
        "--booster-seeds",
        type=_positive,
        default=1,
        help="fits per inner fold, averaged (default: 1)",
    )
    parser.add_argument(
        "--class-weights",
        choices=("none", "balanced"),
        default="none",
        help="rows weighted by the inverse of their class's frequency in the "
        "boosters and the regression (default: none)",
    )
    parser.add_argument(
        "--trials",
        type=_positive,
        default=Settings.trials,
        help="weightings that the soft vote tries (default: %(default)s)",
    )
    parser.add_argument(
        "--search",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="search the boosters' parameters for so long in all (default: "
        "use the built-in ones)",
    )
    parser.add_argument(
        "--search-storage",
        metavar="FILE",
        help="where the search is kept and resumed, also the URL of a "
        "database as Optuna takes it (default: OUT/search.journal)",
    )
    parser.add_argument(
        "--no-leak-check",
        action="store_true",
        help="stack even a run that is suspiciously sure of its validation "
        "rows",
    )
    return parser


def _predict_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stacking predict",
        description="Predicts new logits with a stack made before.",
    )
    _common(parser)
    parser.add_argument("--stack", required=True, type=_local, metavar="FOLDER")
    parser.add_argument("--out", required=True, type=_local, metavar="CSV")
    parser.add_argument("--split", choices=("test", "val"), default="test")
    return parser


def _boosters(text: str, parser_error) -> tuple[str, ...]:
    chosen = tuple(name for name in text.split(",") if name and name != "none")
    unknown = [name for name in chosen if name not in boosters.KINDS]
    if unknown:
        parser_error(
            f"--boosters knows {', '.join(boosters.KINDS)} and none, "
            f"not {unknown[0]}"
        )
    return chosen


def _stack(options: argparse.Namespace) -> None:
    kinds = _boosters(options.boosters, _stack_parser().error)
    # One search per booster, for each outer fold and for the final fit.
    searches = len(kinds) * (OUTER_FOLDS + 1)
    settings = Settings(
        seed=options.seed,
        trials=options.trials,
        boosters=kinds,
        booster_seeds=options.booster_seeds,
        class_weights=options.class_weights,
        blend=options.blend,
        decision=options.decision,
        search_seconds=options.search / searches if kinds else 0.0,
        search_storage=str(
            options.search_storage or options.out / "search.journal"
        ),
        threads=options.threads,
    )
    job = pipeline.Job(
        runs=options.runs,
        out=options.out,
        settings=settings,
        sample_submission=options.sample_submission,
        submission_format=options.format,
        leak_check=not options.no_leak_check,
    )
    # A log file has room for every column.
    console = Console(
        highlight=False, width=None if sys.stdout.isatty() else 100
    )
    status = Console(stderr=True, highlight=False)
    started = time.monotonic()
    with (
        _one_blas_thread(),
        status.status("reading logits", spinner=_spinner(status)) as line,
    ):
        results = pipeline.stack(
            job,
            progress=_Progress(line, status, started),
            note=_note_on(status),
        )
    console.print(score_table(results, console.width))
    weights = results["final"]["blend_weights"]
    console.print(
        "final blend: "
        + " + ".join(f"{w:.2f} {title(name)}" for name, w in weights.items()),
        markup=False,
    )
    console.print(
        f"wrote {options.out}/"
        + ("submission.csv, " if results["test_rows"] else "")
        + f"scores.json, report.html in {time.monotonic() - started:.0f} s",
        markup=False,
        soft_wrap=True,
    )


def _spinner(console: Console) -> str:
    return "dots" if console.encoding.startswith("utf") else "line"


def _note_on(console: Console) -> Callable[[str], None]:
    # Names of folders are no markup.
    return lambda text: console.print(
        f"note: {text}", style="yellow", markup=False, soft_wrap=True
    )


class _Progress:
    """Shows each step in place; in a log file, a line per fold."""

    def __init__(self, line: Status, console: Console, started: float):
        self._line, self._console, self._started = line, console, started
        self._part = ""

    def __call__(self, step: str) -> None:
        seconds = f"{time.monotonic() - self._started:.0f} s"
        self._line.update(f"{step} [dim]({seconds})[/]")
        part = step.split(":")[0]
        if part != self._part and not self._console.is_terminal:
            self._console.print(f"{seconds:>6}  {part}", soft_wrap=True)
        self._part = part


def _predict(options: argparse.Namespace) -> None:
    status = Console(stderr=True, highlight=False)
    with _one_blas_thread():
        rows = pipeline.predict(
            options.stack,
            options.runs,
            options.out,
            split=options.split,
            sample_submission=options.sample_submission,
            submission_format=options.format,
            threads=options.threads,
            note=_note_on(status),
        )
    print(f"wrote {rows:,} rows to {options.out}")


if __name__ == "__main__":
    main()
