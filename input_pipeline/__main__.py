"""Shows the augmented images of a recipe, and audits data.

    python -m input_pipeline --config=configs/tinyvit.py \
        --config.data.root=/data/poses --out=contact_sheet.png

draws a contact sheet of augmented images with their labels.

    python -m input_pipeline audit --config=configs/tinyvit.py \
        --config.data.root=/data/poses --out=audit.csv

decodes every image once and lists bad files, copies, odd sizes and doubtful
labels. Exit code 0: everything can be used; 1: something would be left out;
2: a mistake in the command or in the csv, in one sentence.

    python -m input_pipeline convert --config=configs/tinyvit.py \
        --config.data.root=/data/poses --out=/data/poses-records

writes the photos into a few large files, for fast reading at scale.

    python -m input_pipeline to-coco --config=configs/unet.py \
        --config.data.root=/data/steel --out=/data/steel-coco
    python -m input_pipeline from-coco \
        --annotations=instances_train.json --out=/data/parts/mask_train

write masks as COCO annotations, and COCO annotations as masks.

Any field of the config can be set as for train.py; without data both take the
digits that ship inside scikit-learn.
"""

from __future__ import annotations

if __name__ == "__main__":
    from core import output, signals

    output.install()
    signals.install()  # First of all: the imports below take seconds.

import os
import sys
from typing import TYPE_CHECKING, Any

from configs import common, loading
from core import csv_table
from core.errors import UserError, exit_on_user_error
from input_pipeline import audit
from input_pipeline.contact_sheet import write_contact_sheet
from input_pipeline.findings import loses, write_findings
from input_pipeline.folds import check_given_folds, folds_for
from input_pipeline.sources import open_source
from input_pipeline.transforms.policy import Augment

if TYPE_CHECKING:
    from input_pipeline.sources.base import Source
    from input_pipeline.transforms.mixing import Mixing


def draw(argv: list[str]) -> None:
    """Draws a contact sheet.

    Args:
      argv: the command line without the program's name.
    """
    parser = loading.Parser(
        prog="python -m input_pipeline",
        description="Draws a contact sheet of a recipe's augmentations.",
        epilog="Commands, each with --help: audit finds bad images, copies "
        "and doubtful labels; convert writes large files; to-coco and "
        "from-coco convert masks.",
    )
    parser.add_argument("--out", default="contact_sheet.png", metavar="PNG")
    parser.add_argument("--rows", type=int, default=8, help="images")
    parser.add_argument("--columns", type=int, default=8, help="cells each")
    parser.add_argument(
        "--batches", type=int, default=4, help="erased and mixed, below"
    )
    parser.add_argument(
        "--stage", type=int, default=1, help="of the recipe, from 1 on"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of choice and augmentation"
    )
    known, config = loading.parse(parser, argv)
    if min(known.rows, known.columns) < 1:
        raise UserError("--rows and --columns must be at least 1")
    if not 1 <= known.stage <= max(len(config.stages), 1):
        raise UserError(
            f"--stage is {known.stage}; choose one of the recipe's "
            f"{len(config.stages)} stages, counted from 1"
        )
    if known.batches < 0 or known.seed < 0:
        raise UserError("--batches and --seed must be 0 or more")
    stage = config.stages[known.stage - 1] if config.stages else None
    settings = {name: dict(config[name]) for name in ("augment", "mixing")}
    if stage is not None:
        settings = {
            name: common.merged(config, stage, name) for name in settings
        }
    source, mixing = open_source(config.data), None
    if known.batches and source.classes:
        mixing = _mixing(settings["mixing"])
    chosen = write_contact_sheet(
        known.out,
        source,
        Augment(**settings["augment"]),
        size=config.image_size,
        seed=known.seed,
        rows=known.rows,
        columns=known.columns,
        mixing=mixing,
        batches=known.batches,
    )
    below = ""
    if mixing is not None:
        what = "soft labels" if source.mask_pixels is None else "masks"
        below = (
            f"; below, {known.batches} batches of stage {known.stage} with "
            f"their {what}"
        )
    print(
        f"{known.out}: {len(chosen)} images of '{source.name}', each plain "
        f"and in {known.columns - 1} augmentations, {config.image_size} px"
        f"{below}"
    )
    _print_notes(source)


def _print_notes(source: Source) -> None:
    """Prints what the plan of a training says of the data as well."""
    for heading, text in source.describe().items():
        print(f"{heading}: {text}")


def _mixing(settings: dict[str, Any]) -> Mixing | None:
    """What happens to batches; None if nothing does."""
    # A picture needs no accelerator, which another run may be busy with.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from input_pipeline.transforms.mixing import Mixing

    mixing = Mixing(**settings)
    return mixing if mixing.prob or mixing.erase_prob else None


def check(argv: list[str]) -> int:
    """Audits the data.

    Args:
      argv: the command line without the program's name and `audit`.

    Returns:
      The exit code, 1 if something would be left out, else 0.
    """
    parser = loading.Parser(
        prog="python -m input_pipeline audit",
        description="Decodes every image and lists what is wrong; exits with "
        "1 if something would be left out.",
    )
    parser.add_argument("--out", default="audit.csv", metavar="CSV")
    known, config = loading.parse(parser, argv)
    data = config.data
    source = open_source(data, keep_going=True)
    check_given_folds(source, data)
    if data.folds_file and os.path.exists(data.folds_file):
        folds_for(
            source,
            data.folds,
            data.folds_seed,
            data.folds_file,
            id_column=data.id_column,
            note=print,
        )
    found = audit.audit(source, config.data.folds)
    write_findings(known.out, found)
    print("\n".join([*audit.summary(source, found), *source.notes]))
    if found:
        print(f"all {len(found):,} of them: {known.out}")
    return int(loses(found))


def convert(argv: list[str]) -> None:
    """Writes the data as a folder of ArrayRecord shards.

    Args:
      argv: the command line without the program's name and `convert`.
    """
    from input_pipeline.sources import records_writer

    parser = loading.Parser(
        prog="python -m input_pipeline convert",
        description="Writes photos, masks, labels and ids into a few large "
        "files (ArrayRecord), which --config.data.source=records reads.",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", required=True, help="local or gs://…"
    )
    parser.add_argument(
        "--rows-per-shard",
        type=int,
        default=records_writer.ROWS_PER_SHARD,
        help="photos in one file",
    )
    known, config = loading.parse(parser, argv)
    if known.rows_per_shard < 1:
        raise UserError("--rows-per-shard must be at least 1")
    config.data.clean_impulses = False  # The files as they are.
    source = open_source(config.data)
    print(records_writer.convert(source, known.out, known.rows_per_shard))
    _print_notes(source)


def to_coco(argv: list[str]) -> None:
    """Writes masks as COCO annotations; see `coco.to_coco.run`."""
    from input_pipeline.coco import to_coco  # SciPy takes a while.

    to_coco.run(argv)


def from_coco(argv: list[str]) -> None:
    """Writes COCO annotations as masks; see `coco.from_coco.run`."""
    from input_pipeline.coco import from_coco

    from_coco.run(argv)


def main(argv: list[str]) -> int:
    """Runs a command; without a name it is the contact sheet.

    Args:
      argv: the command line without the program's name.

    Returns:
      The exit code.
    """
    commands = {
        "audit": check,
        "convert": convert,
        "to-coco": to_coco,
        "from-coco": from_coco,
    }
    if not argv or argv[0].startswith("-"):
        draw(argv)
        return 0
    if argv[0] not in commands:
        raise UserError(
            f"there is no command '{argv[0]}'"
            f"{csv_table.did_you_mean(argv[0], commands)}; choose from "
            f"{', '.join(commands)}, or none for the contact sheet"
        )
    return commands[argv[0]](argv[1:]) or 0


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
