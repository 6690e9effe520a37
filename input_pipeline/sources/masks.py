"""Images beside masks: one folder of each per split, paired by file name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from core.errors import UserError
from input_pipeline.sources import (
    listing,
    mask_census,
    mask_format,
    mask_pairs,
)
from input_pipeline.sources.base import (
    Examples,
    Kind,
    LeftOut,
    Refused,
    Source,
    fingerprint,
    read_file,
)
from input_pipeline.sources.mask_census import Census
from input_pipeline.sources.mask_format import MaskFormat
from input_pipeline.sources.mask_pairs import Pair


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
        return self.format.decode(self.mask_file(row))

    def mask_file(self, row: int) -> bytes:
        """Returns the bytes of a mask's file.

        Raises:
          BadImage: it cannot be read.
        """
        return read_file(self.mask_paths[row])


def open_masks(
    data: Any, root: Path, cache: Path | None = None, keep_going: bool = False
) -> Source:
    """Opens the folder `root`.

    Every mask is read once: what its values mean must be known before
    anything is trained. The answer is kept in `cache`.

    Args:
      data: config.data.
      root: the folder, absolute.
      cache: folder for what was counted; None counts anew.
      keep_going: whether files that training refuses are listed in
        `left_out`, as long as there are others.

    Returns:
      The source. The label of an image, by which folds are stratified, is
      its rarest class. Where there are validation folders, `given_folds`
      puts their images into fold 0 and all others into fold 1.

    Raises:
      UserError: images and masks do not belong together, or a mask holds
        what no class has; how many do, and one of them.
    """
    folders = mask_pairs.find_folders(data, root)
    pairs, left_out = [], []
    for split in ("train", "val"):
        if split in folders:
            found, aside, refused = mask_pairs.find_pairs(
                split, *folders[split], data
            )
            pairs += found
            left_out += aside + _set_aside(refused, keep_going and found)
    form = _described_format(data, root)
    census = mask_census.take_census(
        [pair.image for pair in pairs],
        [pair.mask for pair in pairs],
        form,
        cache,
    )

    def check(find: Callable, *details: MaskFormat) -> None:
        nonlocal pairs, census, left_out
        refused = find([pair.mask for pair in pairs], census, *details)
        if refused is None:
            return
        bad = {file.path for file in refused.files}
        good = np.array([pair.mask not in bad for pair in pairs])
        split_of = {pair.mask: pair.split for pair in pairs}
        left_out += [
            file._replace(split=split_of[file.path])
            for file in _set_aside([refused], keep_going and good.any())
        ]
        pairs = [pair for pair in pairs if pair.mask not in bad]
        census = census.of(good)

    check(mask_census.unreadable)
    check(mask_census.of_other_sizes)
    if form is None:
        form = mask_format.from_found(
            census.values.sum(0), data.ignore_index, root
        )
    check(mask_census.of_no_class, form)
    test = None
    if "test" in folders:
        test = listing.Folder(folders["test"][0], "data.test_images")
        left_out += test.left_out("test")
    return _source(data, pairs, census, form, test, left_out, "val" in folders)


def _set_aside(refused: Iterable[Refused], keep_going: Any) -> list[LeftOut]:
    """The refused files; a UserError about the first unless `keep_going`."""
    found = []
    for sentence, files in refused:
        if not keep_going:
            raise UserError(sentence)
        found += files
    return found


def _source(
    data: Any,
    pairs: Sequence[Pair],
    census: Census,
    form: MaskFormat,
    test: listing.Folder | None,
    left_out: Sequence[LeftOut],
    divided: bool,
) -> Source:
    """The source of pairs that are as they must be."""
    stems = [pair.stem for pair in pairs]
    if len(set(stems)) < len(stems):  # 001 in both splits.
        stems = [f"{pair.split}/{pair.stem}" for pair in pairs]
    paths = [pair.image for pair in pairs]
    mask_paths = [pair.mask for pair in pairs]
    palette = form.palette_of_colours()
    if not palette:
        palette = mask_format.read_palette(read_file(mask_paths[0]))
    form = dataclasses.replace(form, palette=palette)
    pixels = census.values[:, form.values]
    labels = _rarest_class(pixels)
    given = None
    if divided:
        given = np.array([pair.split != "val" for pair in pairs], np.int32)
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
        mask_digests=census.digests,
        left_out=left_out,
    )


def looks_like_masks(data: Any, root: Path) -> bool:
    """Whether `root` holds images beside masks, and no csv that classifies."""
    if (root / data.answers).is_file():
        return False
    pairs = [(data.train_images, data.train_masks), mask_pairs.PLAIN]
    pairs += [
        tuple(name.format("train") for name in layout)
        for layout in mask_pairs.LAYOUTS
    ]
    return any(
        all(name and (root / name).is_dir() for name in pair) for pair in pairs
    )


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
