"""Pages on runs and on data.

    python -m reports compare runs/* --out=compare.html

puts runs beside each other: their scores with intervals, time, parameters,
and the fields in which their configs differ, in the terminal and as a page.

    python -m reports data --config=configs/tinyvit.py \
        --config.data.root=/data/poses --out=data.html

shows a data folder before anything is trained: classes in each fold, samples,
sizes, colours, outliers, copies, and what to do about each finding; with
`--predictions=runs/tinyvit` also labels that a model contradicts.
Exit code 2: a mistake in the command, in one sentence.
"""

from __future__ import annotations

if __name__ == "__main__":
    from core import output, signals

    output.install()
    signals.install()

import sys
from collections.abc import Sequence

import numpy as np

from configs import loading
from core import csv_table, paths
from core.errors import UserError, exit_on_user_error
from run_folder import layout


def compare(argv: Sequence[str]) -> int:
    """Compares runs.

    Args:
      argv: the command line without the program's name and `compare`.

    Returns:
      The exit code.
    """
    from reports import compare

    parser = loading.Parser(
        prog="python -m reports compare",
        description="Puts runs beside each other: what differs in their "
        "configs, scores with intervals, time and parameters.",
    )
    parser.add_argument("runs", nargs="+", metavar="DIR")
    parser.add_argument("--out", default="compare.html", metavar="HTML")
    known = parser.parse_args(argv)
    with paths.reaching([*known.runs, known.out]):
        rows, others = compare.read_rows(known.runs)
        for sentence in others:
            print(sentence, file=sys.stderr)
        print("\n".join(compare.lines(rows)))
        path = compare.compare_report(paths.make_path(known.out), rows)
    print(f"as a page: {path}")
    return 0


def data(argv: Sequence[str]) -> int:
    """Shows a data folder.

    Args:
      argv: the command line without the program's name and `data`.

    Returns:
      The exit code.
    """
    from input_pipeline import audit, inspection
    from input_pipeline.folds import check_given_folds, folds_for
    from input_pipeline.sources import open_source
    from reports import data_overview

    parser = loading.Parser(
        prog="python -m reports data",
        description="Decodes every image of a data folder and makes a page "
        "on it.",
    )
    parser.add_argument("--out", default="data.html", metavar="HTML")
    parser.add_argument(
        "--predictions",
        metavar="DIR",
        help="a run on these data, best over all folds: labels that it "
        "contradicts are shown",
    )
    known, config = loading.parse(parser, argv)
    fields, out = config.data, paths.make_path(known.out)
    run = paths.make_path(known.predictions) if known.predictions else None
    if run is not None and not layout.logits_path(run, "val").exists():
        raise UserError(
            f"{run} has no predicted labels of validation images; name a "
            "finished run of the classify task with --predictions"
        )
    with paths.reaching([out, run or out]):
        source = open_source(fields, keep_going=True)
        check_given_folds(source, fields)
        images = inspection.inspect(source)
        found = audit.findings(source, images, fields.folds)
        if any(finding.problem == "class too small" for finding in found):
            folds = np.zeros(len(source.labelled), np.int32)
        else:
            folds = folds_for(
                source,
                fields.folds,
                fields.folds_seed,
                fields.folds_file or out.parent / "no folds file",
                id_column=fields.id_column,
            )
        overview = data_overview.Overview(source, folds, images, found)
        path = data_overview.data_report(out, overview, run)
    print("\n".join([*audit.summary(source, found), *source.notes]))
    print(f"as a page: {path}")
    return 0


def main(argv: Sequence[str]) -> int:
    """Runs a command.

    Args:
      argv: the command line without the program's name.

    Returns:
      The exit code.
    """
    commands = {"compare": compare, "data": data}
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: python -m reports {{{','.join(commands)}}} ...\n")
        print(__doc__)
        return 0
    if not argv or argv[0] not in commands:
        name = argv[0] if argv else ""
        what = f"there is no command '{name}'" if name else "name a command"
        near = csv_table.did_you_mean(name, commands) if name else ""
        raise UserError(f"{what}{near}; choose from {', '.join(commands)}")
    return commands[argv[0]](argv[1:])


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
