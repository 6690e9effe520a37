"""Where images come from: digits, csv, folders, masks, pairs, records, tfds.

`open_source(config.data)` looks at the folder, checks everything that can be
checked without decoding an image, and returns a `Source`: the labelled
examples that the folds divide, and the examples to predict.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core import csv_table
from core.errors import UserError
from input_pipeline.sources import cleaned, csv, folders, masks, pairs
from input_pipeline.sources.base import Source


def open_source(
    data: Any, cache: Path | None = None, keep_going: bool = False
) -> Source:
    """Opens the data that `config.data` describes.

    Args:
      data: attributes `root`, `source`, `clean_impulses` and, for the chosen
        source, the column and folder names (see configs/inputs.py). An empty
        `root` means the digits; an empty `source` is found out from what is in
        `root`.
      cache: folder for what takes long to find out; None keeps nothing.
      keep_going: whether masks and pairs that training refuses are listed
        in `left_out`, for an audit, as long as there are others.

    Returns:
      The source, checked: every labelled row has a file and a known class.

    Raises:
      UserError: a missing folder or file, a wrong column, a bad id or label,
        or `group_column` of a source without columns.
    """
    source = _open(data, cache, keep_going)
    if data.group_column and source.groups is None:
        raise UserError(
            f"data.group_column is '{data.group_column}', but the source "
            f"'{source.name}' has no groups; leave it empty, or use a csv "
            "with that column"
        )
    # What an older run has saved of its data lacks the field.
    if getattr(data, "clean_impulses", False):
        return cleaned.cleaned_source(source)
    return source


def _open(data: Any, cache: Path | None, keep_going: bool) -> Source:
    kind = data.source
    if not kind and not data.root:
        kind = "digits"
    if kind in ("digits", "digit_scenes", "digit_pairs") and data.root:
        raise UserError(
            f"data.source is '{kind}', which ignores data.root "
            f"({data.root}); leave one of them out: for your own images take "
            "the recipe without :demo, or set --config.data.source="
        )
    if kind == "digits":
        from input_pipeline.sources import digits

        return digits.open_digits(data)
    if kind == "digit_scenes":
        from input_pipeline.sources import digit_scenes

        return digit_scenes.open_digit_scenes(data)
    if kind == "digit_pairs":
        from input_pipeline.sources import digit_pairs

        return digit_pairs.open_digit_pairs(data)
    if kind == "records" and data.root:
        from input_pipeline.sources import records

        return records.open_records(data)
    if kind.startswith("tfds:"):
        from input_pipeline.sources import tfds

        return tfds.open_tfds(data)
    if kind not in ("", "csv", "folders", "masks", "pairs", "records"):
        raise UserError(
            f"data.source is '{kind}', which is not known; choose digits, "
            "digit_scenes, digit_pairs, csv, folders, masks, pairs, records or "
            "tfds:<name>"
            f"{csv_table.did_you_mean(kind, _KINDS)}"
        )
    if not data.root:
        raise UserError(
            f"data.source is '{kind}' but data.root is empty; set "
            "--config.data.root to the folder with the images"
        )
    root = Path(data.root).expanduser().absolute()
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise UserError(
            f"data.root {root} {problem}; set --config.data.root to the "
            "folder with the images"
        )
    if kind == "pairs":
        return pairs.open_pairs(data, root, keep_going)
    if kind == "masks" or (not kind and masks.looks_like_masks(data, root)):
        return masks.open_masks(data, root, cache, keep_going)
    if not kind and _looks_like_csv(data, root):
        _check_answers(data, root)
        kind = "csv"
    if kind == "csv":
        return csv.open_csv(data, root)
    return folders.open_folders(data, root)


_KINDS = (
    "digits",
    "digit_scenes",
    "digit_pairs",
    "csv",
    "folders",
    "masks",
    "pairs",
    "records",
    "tfds:",
)


def _looks_like_csv(data: Any, root: Path) -> bool:
    """Whether `root` is meant as the competition layout.

    Also when the csv has another name: training "img_train" against
    "img_test" as two classes would be the worst answer.
    """
    return (
        (root / data.answers).is_file()
        or (root / data.train_images).is_dir()
        or any(root.glob("*.csv"))
    )


def _check_answers(data: Any, root: Path) -> None:
    """Refuses a folder that may be either, saying how to tell."""
    if not (root / data.answers).is_file():
        near = csv_table.did_you_mean(
            data.answers, [path.name for path in root.glob("*.csv")]
        )
        raise UserError(
            f"{root / data.answers} does not exist; set --config.data.answers"
            f"{near}, or set --config.data.source=folders if each folder of "
            f"{root} is a class"
        )
