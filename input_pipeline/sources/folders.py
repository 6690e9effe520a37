"""One folder of images per class."""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from input_pipeline.decoding import EXTENSIONS
from input_pipeline.sources import labels as labels_lib
from input_pipeline.sources import listing
from input_pipeline.sources.base import (
    FileExamples,
    LeftOut,
    Source,
    fingerprint,
)
from run_folder import layout

# What lies beside the classes of generated images.
_OF_GENERATORS = {
    Path(name).name for name in (layout.SAMPLES, layout.SAMPLE_SCORES)
}


def open_folders(data: Any, root: Path) -> Source:
    """Opens one folder per class, or those in `train/` beside a `test/`.

    Images may lie in folders below these.

    Args:
      data: config.data.
      root: the folder, absolute.

    Raises:
      UserError: an empty folder, fewer than two classes, or folders that may
        be splits as well as classes.
    """
    train = root / "train" if (root / "train").is_dir() else root
    test_path = None
    if data.test_folder:
        test_path = root / data.test_folder
    elif train != root and (root / "test").is_dir():
        test_path = root / "test"

    if train == root and not data.test_folder:
        _check_no_split_folders(root)
    folders = {
        folder.path.name: folder for folder in _folders(train, test_path)
    }
    names, targets, sizes = [], [], []
    left_out = _beside(train, test_path) if train != root else []
    left_out += [
        LeftOut("train", entry.path, _loose(entry))
        for entry in listing.entries(train).values()
        if not listing.is_folder(entry)
        and listing.kind_of(entry)
        and entry.name not in _OF_GENERATORS
    ]
    for name, folder in folders.items():
        found = sorted(folder.image_names())
        if test_path is not None and folder.path in test_path.parents:
            below = f"{test_path.relative_to(folder.path)}/"
            found = [file for file in found if not file.startswith(below)]
        aside = folder.left_out("train")
        left_out += aside
        if not found:
            undecodable = [f for f in aside if f.problem == "no decoder"]
            but = f", but {undecodable[0].path}" if undecodable else ""
            raise UserError(
                f"class folder {folder.path} holds no image "
                f"({', '.join(EXTENSIONS)}){but}; put images in it or remove it"
            )
        listing.check_readable_names(train, [name])
        listing.check_readable_names(folder.path, found)
        names += [f"{name}/{file}" for file in found]
        sizes += folder.sizes(found)
        targets += [name] * len(found)
    if not names:
        raise UserError(
            f"{train} has neither {data.answers} nor one folder of images per "
            "class; set --config.data.root, or --config.data.answers if the "
            "csv has another name"
        )
    notes = _check_below(train, names, set(folders)) + _generated(train)
    targets, note = labels_lib.without_fractions(targets)
    classes, labels = labels_lib.encode(targets)
    if len(classes) < 2:
        raise UserError(
            f"{train} has one class folder, '{classes[0]}', and there is "
            "nothing to tell apart; add a folder for each other class"
            f"{_or_go_down(train / names[0].split('/')[0], names)}"
        )
    labelled = FileExamples(np.array(names), labels, str(train), names)
    test = None
    if test_path is not None:
        folder = listing.Folder(test_path, "data.test_folder")
        test = listing.every_image(folder)
        left_out += folder.left_out("test")
        _check_no_class_folders(folder, tuple(folders))
        notes += _below("test images", test.names)
    return Source(
        name="folders",
        labelled=labelled,
        test=test,
        classes=classes,
        sample_submission=None,
        id_column=data.submission_id_column,
        target_column=data.target_column,
        fingerprint=fingerprint(names, labels, sizes),
        left_out=left_out,
        notes=[
            *notes,
            *filter(None, [note]),
            *map(str, labels_lib.doubts(classes)),
        ],
    )


def _generated(train: Path) -> list[str]:
    """Says that images are not photos, where a generator has left them."""
    try:
        manifest = json.loads(
            (train / Path(layout.SAMPLES).name).read_text("utf-8")
        )
        _ = manifest["saw"], manifest["images"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [
        "a generator made these images, so scores tell how well they are known "
        "and not photos: data.generated trains on them and validates on photos"
    ]


def _folders(root: Path, *others: Path | None) -> list[listing.Folder]:
    """The folders in `root`, in order of their names, but for `others`."""
    return [
        listing.Folder(root / name, "data.root")
        for name in sorted(listing.entries(root))
        if not listing.is_litter(name)
        and (root / name).is_dir()
        and root / name not in others
    ]


def _beside(train: Path, test: Path | None) -> list[LeftOut]:
    """The images beside `train/` and `test/`, such as those of a `val/`."""
    root = train.parent
    found = [
        LeftOut("train", f"{folder.path}/{name}", "no class")
        for folder in _folders(root, train, test)
        for name in folder.image_names()
    ]
    return found + [
        LeftOut("train", entry.path, _loose(entry))
        for entry in listing.entries(root).values()
        if not listing.is_folder(entry) and listing.kind_of(entry) == "image"
    ]


def _loose(entry: os.DirEntry) -> str:
    """What is wrong with a file that is in no class's folder."""
    kind = listing.kind_of(entry)
    return "no class" if kind == "image" else kind


def _below(what: str, names: Sequence[str], depth: int = 0) -> list[str]:
    """Says how many images lie further down than directly in their folder."""
    count = sum(name.count("/") > depth for name in names)
    return [f"{count:,} {what} lie in subfolders and are taken"] * (count > 0)


def _check_below(
    train: Path, names: Sequence[str], classes: set[str]
) -> list[str]:
    """Says what lies below the class folders, where that can only be of them.

    Raises:
      UserError: it may be of another class, or the classes may lie there.
    """
    deep = [name.split("/") for name in names if name.count("/") > 1]
    for top, *between, _ in deep:
        other = classes.intersection(between) - {top}
        if other:
            count = sum(
                part[0] == top and bool(other.intersection(part[1:-1]))
                for part in deep
            )
            raise UserError(
                f"{train / top} has {count} images in folders called "
                f"'{min(other)}', which is another class; move them to the "
                "folder of their class"
            )
    tops: dict[str, collections.Counter[str]] = {}
    for top, below, *_ in deep:
        tops.setdefault(below, collections.Counter())[top] += 1
    shared = [below for below, found in tops.items() if len(found) > 1]
    # Of splits, few would lie beside their classes.
    if shared and len(names) - len(deep) <= len(names) // 10:
        one, other = sorted(tops[shared[0]])[:2]
        ((largest, _),) = tops[shared[0]].most_common(1)
        raise UserError(
            f"{train} has the same folder '{shared[0]}' in {one} and {other}, "
            "and hardly an image beside it: if the classes lie there, set "
            f"--config.data.root={train / largest}; if not, move the images up "
            "into the folders of their classes"
        )
    return _below("training images", names, 1)


def _or_go_down(folder: Path, names: Sequence[str]) -> str:
    """A further remedy, where one folder holds others with images."""
    if not any(name.count("/") > 1 for name in names):
        return ""
    return f", or set --config.data.root={folder} if the classes lie there"


def _check_no_split_folders(root: Path) -> None:
    """A class called "test" is most likely a test folder."""
    splits = ("test", "val", "valid", "validation")
    for name in sorted(listing.entries(root)):
        if name.casefold() in splits and (root / name).is_dir():
            raise UserError(
                f"{root / name} lies among the class folders; set "
                f"--config.data.test_folder={name} if it holds images to "
                "predict, or move it out of data.root"
            )


def _check_no_class_folders(
    folder: listing.Folder, classes: Sequence[str]
) -> None:
    """Class folders in a test folder would have labels, which it has not."""
    inside = [name for name in classes if (folder.path / name).is_dir()]
    if inside:
        raise UserError(
            f"test folder {folder.path} has a folder '{inside[0]}' like a "
            "class, but test images have no labels; move them up, or set "
            "--config.data.test_folder elsewhere"
        )
