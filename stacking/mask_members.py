"""Runs that predict the same images' pixels, and what they say of them.

A *member* is one run folder with `probabilities/`. Of a run over all folds, an
image of the validation is predicted by the fold that held it out, and a new
image by the mean of the folds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.paths import absolute
from run_folder import artifacts, layout
from run_folder.mask_files import ProbabilityFile
from stacking.runs import expand, resolved

SPLITS = ("val", "test")

# What the table of scores calls its own rows; no member may be called so.
MEAN, WEIGHTED = "equal weights", "weighted mean"

# Values of probabilities that are read at once, of each member.
STRIPE_VALUES = 1 << 23


@dataclass(frozen=True)
class Member:
    """A run, and the files with its probabilities.

    Attributes:
      name: in every table.
      path: the run folder.
      files: of each split the files of each image, by id; several where it is
        the mean of folds.
    """

    name: str
    path: Path
    files: dict[str, dict[str, list[Path]]]


class Picture:
    """What all members say of one image.

    Args:
      split: "val" or "test".
      image_id: of the image.
      members: that predicted it.

    Attributes:
      id: of the image.
      style: of its mask.
      shape: height and width.
      labels: true classes uint8 `[H, W]`, 255 ignored; None in `test`.

    Raises:
      UserError: the members' files do not belong to one image.
    """

    def __init__(self, split: str, image_id: str, members: Sequence[Member]):
        self.id = image_id
        self._files = [
            [ProbabilityFile(path) for path in member.files[split][image_id]]
            for member in members
        ]
        first = self._files[0][0]
        self.style, self.labels = first.style, first.labels
        self.shape = first.shape[:2]
        if split == "val" and self.labels is None:
            raise UserError(
                f"{first.path} has no true classes; export the run again with "
                "--export --config.segment.probabilities=True"
            )
        for file in (file for own in self._files for file in own):
            for what, ours, theirs in (
                ("classes", first.style.classes, file.style.classes),
                ("sizes", first.shape, file.shape),
            ):
                if ours != theirs:
                    raise UserError(
                        f"{first.path} and {file.path} are of different "
                        f"{what} ({_told(ours)} and {_told(theirs)}); name "
                        "runs over the same data"
                    )
            if split == "val" and not np.array_equal(file.labels, self.labels):
                raise UserError(
                    f"{first.path} and {file.path} have other true classes "
                    "for the same image; name runs over the same data"
                )

    def stripes(self) -> Iterator[np.ndarray]:
        """Yields the members' probabilities, float32 `[M, rows, W, C]`."""
        width, count = self.shape[1], len(self.style.classes)
        rows = max(1, STRIPE_VALUES // (width * count))
        streams = [[f.stripes(rows) for f in own] for own in self._files]
        for _ in range(0, self.shape[0], rows):
            yield np.stack(
                [
                    np.mean(
                        [next(stream) for stream in own],
                        axis=0,
                        dtype=np.float32,
                    )
                    / np.float32(255)
                    for own in streams
                ]
            )


def _told(value: Sequence) -> str:
    return " x ".join(map(str, value)) if len(value) < 4 else str(len(value))


def find_members(
    patterns: Sequence[str],
    out: Path,
    note: Callable[[str], None] = lambda line: None,
) -> list[Member]:
    """Opens the runs that are named.

    Args:
      patterns: run folders or globs; folders without masks are passed over.
      out: of the stack, which is no run.
      note: called with a line about a folder that is left out.

    Raises:
      UserError: one does not exist or has not been exported, they have not
        predicted the same images, or there are fewer than two.
    """
    members: list[Member] = []
    # Each once, by whatever name.
    named = {resolved(path): path for path in expand(patterns)}
    named.pop(resolved(out), None)
    for whole, path in named.items():
        if not path.exists():
            raise UserError(
                f"--runs names {path}, which does not exist; train it first "
                "or correct the name"
            )
        # A fold whose whole is named as well.
        if whole.parent in named and layout.FOLD.fullmatch(whole.name):
            continue
        # Another stack has masks, too, and no config.
        is_run = layout.read_config(path) is not None
        files = _files_of(path) if is_run else None
        if files is None:
            if path.is_dir():
                note(f"{path} is no run with masks, and is left out")
            continue
        if not files["val"]:
            raise UserError(
                f"{path} has masks and no probabilities; run its command again "
                "with --export --config.segment.probabilities=True"
            )
        names = [MEAN, WEIGHTED, *(member.name for member in members)]
        name = absolute(path).name
        name = str(path) if name in names else name
        members.append(Member(name, path, files))
    if len(members) < 2:
        raise UserError(
            f"--runs {' '.join(patterns)} names {len(members)} "
            f"run{'' if len(members) == 1 else 's'} with masks, and a mean "
            "takes two; train another model"
        )
    for split in SPLITS:
        _check_images(split, members)
    return members


def _files_of(run: Path) -> dict[str, dict[str, list[Path]]] | None:
    """The probabilities of a run, or of its folds; None without masks."""
    folders = layout.fold_folders(run) or [run]
    names = {folder: _exported(folder) for folder in folders}
    if not any(layout.MASK_COUNTS in found for found in names.values()):
        return None
    files: dict[str, dict[str, list[Path]]] = {split: {} for split in SPLITS}
    for folder, found in names.items():
        if not artifacts.is_complete(folder):
            raise UserError(
                f"{folder} is not exported to its end; run its training's "
                "command again"
            )
        for name in found:
            top, _, rest = name.partition("/")
            split, _, image = rest.partition("/")
            if top == "probabilities" and split in SPLITS:
                own = files[split].setdefault(image.removesuffix(".npz"), [])
                own.append(folder / name)
    return files


def _exported(folder: Path) -> list[str]:
    try:
        text = (folder / layout.ARTIFACTS).read_text("utf-8")
        return list(json.loads(text)["files"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []


def _check_images(split: str, members: Sequence[Member]) -> None:
    """Refuses members that have not predicted the same images."""
    first = members[0]
    ours = first.files[split].keys()
    for other in members[1:]:
        theirs = other.files[split].keys()
        for one, its, lacks in ((first, ours, other), (other, theirs, first)):
            only = sorted(its - lacks.files[split].keys())
            if only:
                raise UserError(
                    f"{one.path} has predicted {len(only)} {split} images "
                    f"that {lacks.path} has not (for one, {only[0]}); name "
                    "runs over the same data and the same fold"
                )
