"""What a segmentation writes about images: masks, and probabilities."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np

from core.atomic_files import atomic_write
from run_folder import layout, mask_files
from run_folder.artifacts import ArtifactWriter
from training.photos import PhotoFiles
from training.tasks.segmentation_prediction import PredictedImage


@dataclasses.dataclass(frozen=True)
class MaskFiles:
    """What a run exports about the images of a split.

    Attributes:
      writer: of the run folder.
      split: "val" or "test".
      style: of the masks.
      probabilities: whether those of the pixels are written, too.
    """

    writer: ArtifactWriter
    split: str
    style: mask_files.MaskStyle
    probabilities: bool

    def write(
        self, image_id: str, image: PredictedImage, labels: np.ndarray | None
    ) -> np.ndarray:
        """Writes the files of an image, whose stripes it reads.

        Args:
          image_id: of the image.
          image: as predicted.
          labels: true classes uint8 [H, W], 255 where ignored; None if unknown.

        Returns:
          Its mask, uint8 [H, W], classes.
        """

        def name(folder: str, suffix: str) -> str:
            return layout.image_file(folder, self.split, image_id, suffix)

        probabilities = contextlib.nullcontext()
        if self.probabilities:
            probabilities = self.writer.probabilities(
                name("probabilities", ".npz"),
                image.height,
                image.width,
                self.style,
                labels,
            )
        with probabilities as add:
            mask = image.mask(add)
        values = self.style.encode(mask)
        self.writer.mask(name("masks", ".png"), values, self.style.palette)
        return mask


def write_photo(
    image: PredictedImage, files: PhotoFiles, style: mask_files.MaskStyle
) -> tuple[np.ndarray, Path]:
    """Writes what predict.py was asked for, of one photo.

    Args:
      image: as predicted; its stripes are read.
      files: what to write, and where.
      style: of the masks.

    Returns:
      Its mask, uint8 [H, W], classes; and the path of the file.

    Raises:
      UserError: the folder cannot be written.
    """
    path = files.folder / files.names[image.row]
    with contextlib.ExitStack() as stack:
        add = None
        if files.probabilities:
            temporary = stack.enter_context(
                atomic_write(path.with_name(f"{path.name}.npz"))
            )
            add = stack.enter_context(
                mask_files.write_probabilities(
                    temporary, image.height, image.width, style
                )
            )
        mask = image.mask(add)
    path = path.with_name(f"{path.name}.png")
    with atomic_write(path) as temporary:
        mask_files.save_mask(temporary, style.encode(mask), style.palette)
    return mask, path
