"""Where images come from: digits, csv, folders, records, tfds.

`open_source(config.data)` looks at the folder, checks everything that can be
checked without decoding an image, and returns a `Source`: the labelled images
that the folds divide, and the images to predict.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from input_pipeline.decoding import EXTENSIONS
from input_pipeline.sources import listing, tables
from input_pipeline.sources.base import (
    ArrayImages,
    FileImages,
    Images,
    Source,
    fingerprint,
)

__all__ = ["ArrayImages", "FileImages", "Images", "Source", "open_source"]


def open_source(data: Any) -> Source:
    """Opens the data that `config.data` describes.

    Args:
      data: attributes `root`, `source` and, for the chosen source, the column
        and folder names (see configs/common.py). An empty `root` means the
        digits; an empty `source` is found out from what is in `root`.

    Returns:
      The source, checked: every labelled row has a file and a known class.

    Raises:
      UserError: a missing folder or file, a wrong column, a bad id or label.
    """
    kind = data.source
    if not kind and not data.root:
        kind = "digits"
    if kind == "digits":
        from input_pipeline.sources import digits

        return digits.open_digits(data)
    if kind == "records" and data.root:
        from input_pipeline.sources import records

        return records.open_records(data)
    if kind.startswith("tfds:"):
        from input_pipeline.sources import tfds

        return tfds.open_tfds(data)
    if kind not in ("", "csv", "folders", "records"):
        raise UserError(
            f"data.source is '{kind}', which is not known; choose digits, "
            "csv, folders, records or tfds:<name>"
            f"{tables.did_you_mean(kind, _KINDS)}"
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
    if kind == "csv" or (not kind and _looks_like_csv(data, root)):
        return _open_csv(data, root)
    return _open_folders(data, root)


# The default of config.data.sample_submission, used if it is there.
SAMPLE_SUBMISSION = "sample_submission.csv"

_KINDS = ("digits", "csv", "folders", "records", "tfds:")


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


def _open_csv(data: Any, root: Path) -> Source:
    """The competition layout: an answers csv beside folders of images."""
    answers = tables.read_csv(root / data.answers, "data.answers")
    ids = answers.column(data.id_column, "data.id_column")
    targets = answers.column(data.target_column, "data.target_column")
    answers.check_ids(ids, data.id_column)
    for row, target in enumerate(targets):
        if not target:
            raise UserError(
                f"{answers.path} has no label for id '{ids[row]}' in column "
                f"'{data.target_column}'; fill it in or remove the row"
            )
        if len(target) > tables.MAX_ID_LENGTH:
            raise UserError(
                f"{answers.path} has a label of {len(target)} characters for "
                f"id '{ids[row]}' in column '{data.target_column}', which is "
                f"no class's name; shorten it to {tables.MAX_ID_LENGTH}"
            )
    classes = _sorted_classes(targets)
    if len(classes) < 2:
        raise UserError(
            f"{answers.path}: every label in column '{data.target_column}' is "
            f"'{classes[0]}', so there is nothing to tell apart; set "
            "--config.data.target_column to the column with the classes"
        )
    _check_class_list(
        root / "classes.csv", answers.path, data.target_column, classes
    )
    index = {name: position for position, name in enumerate(classes)}
    labels = np.array([index[target] for target in targets], np.int32)

    train_folder = listing.Folder(root / data.train_images, "data.train_images")
    names = train_folder.find_all(ids, data.extension, answers.path)
    labelled = FileImages(np.array(ids), labels, str(train_folder.path), names)

    sample = root / data.sample_submission if data.sample_submission else None
    if sample is not None and not sample.is_file():
        if data.sample_submission != SAMPLE_SUBMISSION:
            raise UserError(
                f"data.sample_submission {sample} does not exist; correct "
                "--config.data.sample_submission, or leave it empty to predict "
                "every image in data.test_images"
            )
        sample = None  # The usual name is only a guess.
    test = _open_csv_test(data, root, sample)
    return Source(
        name="csv",
        labelled=labelled,
        test=test,
        classes=classes,
        sample_submission=None if sample is None else str(sample),
        id_column=data.submission_id_column,
        target_column=data.target_column,
        fingerprint=fingerprint(ids, labels, train_folder.sizes(names)),
    )


def _open_csv_test(data: Any, root: Path, sample: Path | None) -> Images | None:
    """The rows to predict: those of the sample, else every image there is."""
    path = root / data.test_images
    if sample is None and not path.is_dir():
        return None
    folder = listing.Folder(path, "data.test_images")
    if sample is None:
        return _every_image(folder)
    table = tables.read_csv(sample, "data.sample_submission")
    ids = table.column(data.submission_id_column, "data.submission_id_column")
    table.column(data.target_column, "data.target_column")
    table.check_ids(ids, data.submission_id_column)
    names = folder.find_all(ids, data.extension, sample)
    return _unlabelled(ids, folder, names)


def _check_no_split_folders(root: Path) -> None:
    """A class called "test" is a test folder that nobody told us of."""
    for name in ("test", "val", "valid", "validation"):
        if (root / name).is_dir():
            raise UserError(
                f"{root / name} lies among the class folders; set "
                f"--config.data.test_folder={name} if it holds images to "
                "predict, or move it out of data.root"
            )


def _open_folders(data: Any, root: Path) -> Source:
    """One folder per class, or those inside `train/` beside a flat `test/`."""
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
    classes = _sorted_classes(targets)
    if len(classes) < 2:
        raise UserError(
            f"{train} has one class folder, '{classes[0]}', and there is "
            "nothing to tell apart; add a folder for each other class"
        )
    index = {name: position for position, name in enumerate(classes)}
    labels = np.array([index[target] for target in targets], np.int32)
    labelled = FileImages(np.array(names), labels, str(train), names)
    test = None
    if test_path is not None:
        folder = listing.Folder(test_path, "data.test_folder")
        test = _every_image(folder)
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


def _every_image(folder: listing.Folder) -> FileImages:
    names = folder.image_names()
    if not names:
        raise UserError(
            f"test folder {folder.path} holds no image "
            f"({', '.join(EXTENSIONS)}); put the images there or remove it"
        )
    listing.check_readable_names(folder.path, names)
    ids = [listing.stem(name) for name in names]
    if len(set(ids)) < len(ids):
        ids = names  # 1.jpg beside 1.png: only full names tell them apart.
    return _unlabelled(ids, folder, names)


def _unlabelled(
    ids: Sequence[str], folder: listing.Folder, names: Sequence[str]
) -> FileImages:
    unknown = np.full(len(ids), -1, np.int32)
    return FileImages(np.array(ids), unknown, str(folder.path), names)


def _sorted_classes(targets: Iterable[str]) -> tuple[str, ...]:
    """Unique label texts, in numeric order when all are integers."""
    unique = sorted(set(targets))
    try:
        return tuple(sorted(unique, key=int))
    except ValueError:
        return tuple(unique)


def _check_class_list(
    path: Path, answers: Path, column: str, classes: Sequence[str]
) -> None:
    """Compares the labels with `classes.csv`, where there is one."""
    if not path.is_file():
        return
    table = tables.read_csv(path, "data.root")
    if column not in table.header:
        return
    listed = set(table.column(column, "data.target_column"))
    for name, here, there in [
        *((name, answers, path) for name in sorted(set(classes) - listed)),
        *((name, path, answers) for name in sorted(listed - set(classes))),
    ]:
        raise UserError(
            f"label '{name}' is in {here} but not in {there}; make the two "
            f"agree in column '{column}'"
        )
