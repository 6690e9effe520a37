"""Images beside masks: one folder of each per split, paired by file name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from core.errors import UserError
from input_pipeline.sources import listing, mask_census, mask_format
from input_pipeline.sources.base import (
    Examples,
    Kind,
    LeftOut,
    Source,
    fingerprint,
    read_file,
)
from input_pipeline.sources.mask_format import MaskFormat

# Folders of a split under the root where the config says nothing else.
LAYOUTS = (
    ("img_{}", "mask_{}"),
    ("images/{}", "masks/{}"),
    ("{}/images", "{}/masks"),
    ("img_dir/{}", "ann_dir/{}"),
)
SPLITS = ("train", "val", "test")
PLAIN = ("images", "masks")  # Without splits.


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedExamples(Examples):
    """Image files, each with a mask file; `mask_paths` is empty without.

    Attributes:
      paths: of the images, absolute.
      mask_paths: of the masks, absolute.
      format: of the masks.
    """

    paths: Sequence[str]
    mask_paths: Sequence[str]
    format: MaskFormat

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kind of every feature."""
        masks = {"mask": Kind.MASK} if self.mask_paths else {}
        return {**super().kinds, **masks}

    def path(self, row: int) -> str:
        """The absolute path of a row's image."""
        return self.paths[row]

    def read(self, row: int) -> dict[str, bytes | np.ndarray]:
        """Returns `image`, the file's bytes, and `mask`, uint8 `[H, W]`."""
        features: dict[str, Any] = {"image": read_file(self.paths[row])}
        if self.mask_paths:
            features["mask"] = self.mask(row)
        return features

    def mask(self, row: int) -> np.ndarray:
        """Returns a mask as class indices and `IGNORE`, uint8 `[H, W]`.

        Raises:
          BadImage: it cannot be read, or holds what no class has.
        """
        return self.format.decode(read_file(self.mask_paths[row]))


def open_masks(data: Any, root: Path, cache: Path | None = None) -> Source:
    """Opens the folder `root`.

    Every mask is read once: what its values mean must be known before
    anything is trained. The answer is kept in `cache`.

    Args:
      data: config.data.
      root: the folder, absolute.
      cache: folder for what was counted; None counts anew.

    Returns:
      The source. The label of an image, by which folds are stratified, is
      its rarest class. Where there are validation folders, `given_folds`
      puts their images into fold 0 and all others into fold 1.

    Raises:
      UserError: images and masks do not belong together, or a mask holds
        what no class has; how many do, and one of them.
    """
    folders = _folders(data, root)
    pairs, left_out = [], []
    for split in ("train", "val"):
        if split in folders:
            found, aside = _pairs(split, *folders[split], data)
            pairs += found
            left_out += aside
    test = None
    if "test" in folders:
        test = listing.Folder(folders["test"][0], "data.test_images")
        left_out += test.left_out("test")
    stems = [stem for _, stem, *_ in pairs]
    if len(set(stems)) < len(stems):  # 001 in both splits.
        stems = [f"{split}/{stem}" for split, stem, *_ in pairs]
    paths = [image for _, _, image, _ in pairs]
    mask_paths = [mask for _, _, _, mask in pairs]
    form = _described_format(data, root)
    census = mask_census.take_census(paths, mask_paths, form, cache)
    mask_census.refuse_unreadable(mask_paths, census)
    if form is None:
        form = mask_format.from_found(
            census.values.sum(0), data.ignore_index, root
        )
    mask_census.refuse_values(mask_paths, census, form)
    palette = form.palette_of_colours()
    if not palette:
        palette = mask_format.read_palette(read_file(mask_paths[0]))
    form = dataclasses.replace(form, palette=palette)
    pixels = census.values[:, form.values]
    labels = _rarest_class(pixels)
    given = None
    if "val" in folders:
        given = np.array([split != "val" for split, *_ in pairs], np.int32)
    return Source(
        name="masks",
        labelled=MaskedExamples(
            np.array(stems), labels, paths, mask_paths, form
        ),
        test=None if test is None else _unmasked(test, form),
        classes=form.classes,
        sample_submission=None,
        id_column=data.submission_id_column,
        target_column=data.target_column,
        fingerprint=fingerprint(
            stems, labels, mask_census.file_sizes(paths + mask_paths)
        ),
        given_folds=given,
        mask_pixels=pixels,
        mask_sizes=census.sizes[:, :2],
        left_out=left_out,
    )


def looks_like_masks(data: Any, root: Path) -> bool:
    """Whether `root` holds images beside masks, and no csv that classifies."""
    if (root / data.answers).is_file():
        return False
    pairs = [(data.train_images, data.train_masks), PLAIN]
    pairs += [tuple(n.format("train") for n in layout) for layout in LAYOUTS]
    return any(
        all(name and (root / name).is_dir() for name in pair) for pair in pairs
    )


# ---- Folders and pairs -------------------------------------------------------


def _folders(data: Any, root: Path) -> dict[str, tuple[Path, Path]]:
    """The image and mask folder of each split that there is.

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


def _pairs(
    split: str, images: Path, masks: Path, data: Any
) -> tuple[list[tuple[str, str, str, str]], list[LeftOut]]:
    """Split, stem, image and mask of every pair of two folders; and the rest.

    Raises:
      UserError: one side of a pair is missing, or there are two of it.
    """
    folders = [listing.Folder(path, "data.root") for path in (images, masks)]
    suffix = data.mask_suffix
    photo = _by_stem(folders[0], "")
    mask = _by_stem(folders[1], suffix)
    if suffix and images == masks:  # Side by side in one folder.
        photo = {s: n for s, n in photo.items() if not s.endswith(suffix)}
    for ours, theirs, here, there, what in (
        (photo, mask, images, masks, "no mask"),
        (mask, photo, masks, images, "no image"),
    ):
        lonely = [stem for stem in ours if stem not in theirs]
        if not lonely:
            continue
        advice = "add the files, or remove what they belong to"
        suffix = _common_suffix(photo, mask)
        if suffix:
            advice = f"set --config.data.mask_suffix={suffix}"
        raise UserError(
            f"{len(lonely)} of {len(ours)} files in {here} have {what} in "
            f"{there} (for one, {ours[lonely[0]]}); {advice}"
        )
    if not photo:
        raise UserError(
            f"{images} holds no image; put the {split} images there, or set "
            f"--config.data.{split}_images"
        )
    pairs = [
        (split, stem, str(images / photo[stem]), str(masks / mask[stem]))
        for stem in photo
    ]
    taken = (photo, mask)
    return pairs, [
        file
        for folder, names in zip(folders, taken, strict=True)
        for file in folder.left_out(
            "train", None if images == masks else names.values()
        )
    ]


def _by_stem(folder: listing.Folder, suffix: str) -> dict[str, str]:
    """File names in a folder by stem, without `suffix` at its end."""
    names: dict[str, str] = {}
    found = folder.image_names()
    listing.check_readable_names(folder.path, found)
    for name in found:
        stem = listing.stem(name)
        if suffix and not stem.endswith(suffix):
            continue
        stem = stem.removesuffix(suffix)
        if stem in names:
            raise UserError(
                f"{folder.path} has {names[stem]} and {name} for '{stem}'; "
                "keep one of them"
            )
        names[stem] = name
    return names


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


def _unmasked(folder: listing.Folder, form: MaskFormat) -> Examples:
    found = listing.every_image(folder)
    paths = [found.path(row) for row in range(len(found))]
    return MaskedExamples(found.ids, found.labels, paths, (), form)


# ---- What the masks hold -----------------------------------------------------


def _described_format(data: Any, root: Path) -> MaskFormat | None:
    """The format that the config or a list of classes tells, if one does."""
    path, listed = root / data.class_list, None
    if path.is_file():
        listed = mask_format.read_classes(path)
    if data.mask_values:
        return mask_format.from_values(
            data.mask_values, data.ignore_index, listed
        )
    if listed is None or data.ignore_index in (-1, *listed.ignored):
        return listed
    if data.ignore_index in listed.values:
        name = listed.classes[listed.values.index(data.ignore_index)]
        raise UserError(
            f"data.ignore_index is {data.ignore_index}, which {path} lists as "
            f"class '{name}'; put 1 into its column 'ignore'"
        )
    return dataclasses.replace(
        listed, ignored=(*listed.ignored, data.ignore_index)
    )


def _rarest_class(pixels: Int64[np.ndarray, "N C"]) -> np.ndarray:
    """Of each image the class that has the fewest pixels in all of them.

    A class that only one image would stand for cannot be stratified by: that
    image counts to the most frequent one.
    """
    rarity = pixels.sum(0).argsort(kind="stable")
    ordered = pixels[:, rarity] > 0
    labels = rarity[ordered.argmax(axis=1)].astype(np.int32)
    counts = np.bincount(labels)
    return np.where(counts[labels] > 1, labels, counts.argmax()).astype(
        np.int32
    )
