"""One folder of images per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from input_pipeline.decoding import EXTENSIONS
from input_pipeline.sources import listing
from input_pipeline.sources.base import (
    FileExamples,
    Source,
    encode_labels,
    fingerprint,
)


def open_folders(data: Any, root: Path) -> Source:
    """Opens one folder per class, or those in `train/` beside a flat `test/`.

    Args:
      data: config.data.
      root: the folder, absolute.

    Raises:
      UserError: an empty folder, or fewer than two classes.
    """
    train = root / "train" if (root / "train").is_dir() else root
    test_path = None
    if data.test_folder:
        test_path = root / data.test_folder
    elif train != root and (root / "test").is_dir():
        test_path = root / "test"

    names, targets, sizes = [], [], []
    if train == root and not data.test_folder:
        _check_no_split_folders(root)
    for name in sorted(listing.entries(train)):
        folder = train / name
        if name.startswith(".") or not folder.is_dir():
            continue
        if test_path is not None and folder == test_path:
            continue
        inside = listing.Folder(folder, "data.root")
        found = sorted(inside.image_names())
        if not found:
            raise UserError(
                f"class folder {folder} holds no image "
                f"({', '.join(EXTENSIONS)}); put images in it or remove it"
            )
        listing.check_readable_names(train, [folder.name])
        listing.check_readable_names(folder, found)
        names += [f"{folder.name}/{name}" for name in found]
        sizes += inside.sizes(found)
        targets += [folder.name] * len(found)
    if not names:
        raise UserError(
            f"{train} has neither {data.answers} nor one folder of images per "
            "class; set --config.data.root, or --config.data.answers if the "
            "csv has another name"
        )
    classes, labels = encode_labels(targets)
    if len(classes) < 2:
        raise UserError(
            f"{train} has one class folder, '{classes[0]}', and there is "
            "nothing to tell apart; add a folder for each other class"
        )
    labelled = FileExamples(np.array(names), labels, str(train), names)
    test = None
    if test_path is not None:
        folder = listing.Folder(test_path, "data.test_folder")
        test = listing.every_image(folder)
        _check_no_class_folders(folder, classes)
    return Source(
        name="folders",
        labelled=labelled,
        test=test,
        classes=classes,
        sample_submission=None,
        id_column=data.submission_id_column,
        target_column=data.target_column,
        fingerprint=fingerprint(names, labels, sizes),
    )


def _check_no_split_folders(root: Path) -> None:
    """A class called "test" is most likely a test folder."""
    for name in ("test", "val", "valid", "validation"):
        if (root / name).is_dir():
            raise UserError(
                f"{root / name} lies among the class folders; set "
                f"--config.data.test_folder={name} if it holds images to "
                "predict, or move it out of data.root"
            )


def _check_no_class_folders(
    folder: listing.Folder, classes: Sequence[str]
) -> None:
    """A test folder is flat; class folders in it would be passed over."""
    inside = [name for name in classes if (folder.path / name).is_dir()]
    if inside:
        raise UserError(
            f"test folder {folder.path} has a folder '{inside[0]}' like a "
            "class, but test images lie directly in it and have no labels; "
            "move them up, or set --config.data.test_folder elsewhere"
        )
