"""Writes a contact sheet of augmented images with their labels.

    python -m input_pipeline --config=configs/tinyvit.py \
        --config.data.root=/data/poses --out=contact_sheet.png

Any field of the config can be set as for train.py; without data it shows the
digits that ship inside scikit-learn.
"""

from __future__ import annotations

import sys

from configs import loading
from errors import UserError, one_sentence
from input_pipeline import sources
from input_pipeline.augment import Augment
from input_pipeline.contact_sheet import write_contact_sheet


def main(argv: list[str]) -> None:
    """Runs the command line `argv`, without the program's name."""
    parser = loading.Parser(
        prog="python -m input_pipeline",
        description="Draws a contact sheet of what training sees.",
    )
    parser.add_argument("--out", default="contact_sheet.png", metavar="PNG")
    parser.add_argument("--rows", type=int, default=8, help="images")
    parser.add_argument("--columns", type=int, default=8, help="cells each")
    parser.add_argument(
        "--seed", type=int, default=0, help="of choice and augmentation"
    )
    known, config = loading.parse(parser, argv)
    if min(known.rows, known.columns) < 1:
        raise UserError("--rows and --columns must be at least 1")
    source = sources.open_source(config.data)
    chosen = write_contact_sheet(
        known.out,
        source,
        Augment(**config.augment),
        size=config.image_size,
        seed=known.seed,
        rows=known.rows,
        columns=known.columns,
    )
    print(
        f"{known.out}: {len(chosen)} images of '{source.name}', each plain "
        f"and in {known.columns - 1} augmentations, {config.image_size} px"
    )


if __name__ == "__main__":
    with one_sentence():
        main(sys.argv[1:])
