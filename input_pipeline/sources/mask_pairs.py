"""Which image belongs to which mask: folders of the splits, pairs by stem."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from core.errors import UserError
from input_pipeline.sources import listing
from input_pipeline.sources.base import LeftOut, Refused

# Folders of a split under the root where the config says nothing else.
LAYOUTS = (
    ("img_{}", "mask_{}"),
    ("images/{}", "masks/{}"),
    ("{}/images", "{}/masks"),
    ("img_dir/{}", "ann_dir/{}"),
)
SPLITS = ("train", "val", "test")
PLAIN = ("images", "masks")  # Without splits.


class Pair(NamedTuple):
    """An image with its mask.

    Attributes:
      split: `train` or `val`.
      stem: of the image's name.
      image: path, absolute.
      mask: path, absolute.
    """

    split: str
    stem: str
    image: str
    mask: str


def find_folders(data: Any, root: Path) -> dict[str, tuple[Path, Path]]:
    """Returns the image and mask folder of each split that there is.

    Raises:
      UserError: a folder that the config names does not exist.
    """
    named = {
        "train": (data.train_images, data.train_masks),
        "val": (data.val_images, data.val_masks),
        "test": (data.test_images, ""),
    }
    usual = {
        split: tuple(name.format(split) for name in LAYOUTS[0])
        for split in SPLITS
    }
    guessed = {s for s in SPLITS if named[s][0] == usual[s][0]}
    if named["train"] == usual["train"]:
        layouts = [
            {s: tuple(n.format(s) for n in layout) for s in SPLITS}
            for layout in LAYOUTS
        ]
        for layout in (*layouts, {"train": PLAIN}):
            if all((root / name).is_dir() for name in layout["train"]):
                # What the config names otherwise, or leaves out, it decides.
                for split in guessed:
                    named[split] = layout.get(split, ("", ""))
                break
    found = {}
    for split, names in named.items():
        if not names[0]:
            continue
        pair = tuple(root / name for name in names)
        optional = split in guessed and split != "train"
        if optional and not pair[0].is_dir():
            continue
        for kind, folder in zip(("images", "masks"), pair, strict=True):
            if split == "test" and kind == "masks":
                continue
            if not folder.is_dir():
                what = "photos" if kind == "images" else "masks"
                raise UserError(
                    f"folder {folder} does not exist; set "
                    f"--config.data.{split}_{kind} to the folder of the {what}"
                )
        found[split] = pair
    return found


def find_pairs(
    split: str, images: Path, masks: Path, data: Any
) -> tuple[list[Pair], list[LeftOut], list[Refused]]:
    """Returns the pairs of two folders, other files, and what has no partner.

    Args:
      split: `train` or `val`.
      images: folder of the images.
      masks: folder of the masks.
      data: config.data.

    Raises:
      UserError: there is no image.
    """
    folders = [listing.Folder(path, "data.root") for path in (images, masks)]
    suffix, refused = data.mask_suffix, []
    photo, doubles = _by_stem(split, folders[0], "")
    if suffix and images == masks:  # Side by side in one folder.
        photo = {s: n for s, n in photo.items() if not s.endswith(suffix)}
    refused += doubles
    mask, doubles = _by_stem(split, folders[1], suffix)
    refused += doubles
    for ours, theirs, here, there, what, problem in (
        (photo, mask, images, masks, "no mask", "no mask"),
        (mask, photo, masks, images, "no image", "no photo"),
    ):
        lonely = [stem for stem in ours if stem not in theirs]
        if not lonely:
            continue
        advice = "add the files, or remove what they belong to"
        common = _common_suffix(photo, mask)
        if common:
            advice = f"set --config.data.mask_suffix={common}"
        sentence = (
            f"{len(lonely)} of {len(ours)} files in {here} have {what} in "
            f"{there} (for one, {ours[lonely[0]]}); {advice}"
        )
        detail = f"{what} in {there}"
        files = [
            LeftOut(split, str(here / ours[stem]), problem, detail)
            for stem in lonely
        ]
        refused.append(Refused(sentence, files))
    if not photo:
        raise UserError(
            f"{images} holds no image; put the {split} images there, or set "
            f"--config.data.{split}_images"
        )
    pairs = [
        Pair(split, stem, str(images / photo[stem]), str(masks / mask[stem]))
        for stem in photo
        if stem in mask
    ]
    named = {file.path for one in refused for file in one.files}
    left_out = [
        file
        for folder, names in zip(folders, (photo, mask), strict=True)
        for file in folder.left_out(
            split, None if images == masks else names.values()
        )
        if file.path not in named
    ]
    return pairs, left_out, refused


def _by_stem(
    split: str, folder: listing.Folder, suffix: str
) -> tuple[dict[str, str], list[Refused]]:
    """File names in a folder by stem, without `suffix`, and further ones."""
    names: dict[str, str] = {}
    refused = []
    found = folder.image_names()
    listing.check_readable_names(folder.path, found)
    for name in found:
        stem = listing.stem(name)
        if suffix and not stem.endswith(suffix):
            continue
        stem = stem.removesuffix(suffix)
        if stem in names:
            sentence = (
                f"{folder.path} has {names[stem]} and {name} for '{stem}'; "
                "keep one of them"
            )
            detail = f"{names[stem]} has the same name"
            path = str(folder.path / name)
            file = LeftOut(split, path, "two files", detail)
            refused.append(Refused(sentence, [file]))
        names.setdefault(stem, name)
    return names, refused


def _common_suffix(photo: Mapping[str, str], mask: Mapping[str, str]) -> str:
    """What must be cut off the masks' stems to make pairs; '' if nothing."""
    if not photo:
        return ""
    first = next(iter(photo))
    for stem in mask:
        suffix = stem.removeprefix(first)
        if stem != first and stem.startswith(first):
            cut = {s.removesuffix(suffix) for s in mask if s.endswith(suffix)}
            if set(photo) <= cut:
                return suffix
    return ""
