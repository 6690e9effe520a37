"""Writes a contact sheet of augmented images with their labels.

    python -m input_pipeline --config=configs/tinyvit.py \
        --config.data.root=/data/poses --out=contact_sheet.png

Any field of the config can be set as for train.py; without data it shows the
digits that ship inside scikit-learn.
"""

from __future__ import annotations

import sys

from absl import flags
from ml_collections import config_flags

from errors import UserError, one_sentence
from input_pipeline import sources
from input_pipeline.augment import Augment
from input_pipeline.contact_sheet import write_contact_sheet

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "the recipe, as for train.py"
)
_OUT = flags.DEFINE_string("out", "contact_sheet.png", "the PNG to write")
_ROWS = flags.DEFINE_integer("rows", 8, "images", lower_bound=1)
_COLUMNS = flags.DEFINE_integer("columns", 8, "cells each", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "of choice and augmentation")


def main(arguments: list[str]) -> None:
    """Runs the command line `arguments`, the program's name first."""
    with one_sentence():
        _parse(arguments)
        config = _CONFIG.value
        source = sources.open_source(config.data)
        chosen = write_contact_sheet(
            _OUT.value,
            source,
            Augment(**config.augment),
            size=config.image_size,
            seed=_SEED.value,
            rows=_ROWS.value,
            columns=_COLUMNS.value,
        )
        print(
            f"{_OUT.value}: {len(chosen)} images of '{source.name}', each "
            f"plain and in {_COLUMNS.value - 1} augmentations, "
            f"{config.image_size} px"
        )


def _parse(arguments: list[str]) -> None:
    try:
        rest = flags.FLAGS(arguments)
        if _CONFIG.value is not None:
            _CONFIG.value.image_size  # noqa: B018, a lost file shows here
    except OSError as error:
        given = [word for word in arguments if word.startswith("--config=")]
        raise UserError(
            f"{given[0]}: there is no such recipe; choose one in configs/"
        ) from error
    except (KeyError, AttributeError) as error:
        words = ": ".join(str(error.args[0]).splitlines())
        raise UserError(
            f"the config has no field {words}; see configs/common.py for "
            "those there are"
        ) from error
    except (flags.Error, ValueError) as error:
        # An error in the recipe arrives as a whole traceback.
        words = str(error).strip().splitlines()[-1].rstrip(".")
        raise UserError(
            f"{words}; see python -m input_pipeline --help"
        ) from error
    if len(rest) > 1:
        raise UserError(
            f"'{rest[1]}' is not understood; every option starts with --"
        )
    if _CONFIG.value is None:
        raise UserError(
            "there is no --config; give a recipe such as "
            "--config=configs/tinyvit.py"
        )


if __name__ == "__main__":
    main(sys.argv)
