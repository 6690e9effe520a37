"""From a segmentation network's logits to the scores while training."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from core.class_colours import IGNORE
from input_pipeline.transforms import mixing
from metrics import segmentation


class SegmentationEvaluator:
    """Counts pixels at the size of the masks, over the data set and per image.

    Args:
      num_classes: C.
    """

    def __init__(self, num_classes: int):
        self._num_classes = num_classes

    def init(self) -> dict[str, np.ndarray]:
        """Returns the totals over no image."""
        classes = self._num_classes
        zero = np.zeros((), np.float32)
        return {
            # 64 bits in two halves: JAX has no wider integers by default,
            # and 32 are full after some thousand photos.
            "low": np.zeros((classes, classes), np.uint32),
            "high": np.zeros((classes, classes), np.uint32),
            "image_dice": zero,
            "image_iou": zero,
            "images": zero,
            "loss": zero,
            "pixels": zero,
        }

    def update(
        self,
        totals: dict[str, jax.Array],
        model: nnx.Module,
        batch: Mapping[str, jax.Array],
        constants: dict[str, jax.Array],
    ) -> dict[str, jax.Array]:
        """Adds a batch; see `Evaluator`."""
        images = mixing.normalize(
            batch["image"][:, 0], constants["mean"], constants["std"]
        )
        logits = model(images).astype(jnp.float32)
        logits = resized_to_canvas(
            logits, batch["mask_size"], batch["mask"].shape[1:]
        )
        labels, counted = labels_of(batch["mask"])
        counted *= (batch["weight"] * ~batch["bad"])[:, None, None]
        log_p = jax.nn.log_softmax(logits)
        own = jnp.take_along_axis(log_p, labels[..., None], -1)[..., 0]
        confusion = _confusions(labels, logits.argmax(-1), counted, logits)
        dice, iou, seen = _image_scores(confusion)
        summed = confusion.sum(0).astype(jnp.uint32)
        low = totals["low"] + summed
        return {
            "low": low,
            "high": totals["high"] + (low < summed),  # It has wrapped around.
            "image_dice": totals["image_dice"] + dice.sum(),
            "image_iou": totals["image_iou"] + iou.sum(),
            "images": totals["images"] + seen.sum(),
            "loss": totals["loss"] - (own * counted).sum(),
            "pixels": totals["pixels"] + counted.sum(),
        }

    def compute(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        """Returns the scores; see `metrics.segmentation`."""
        confusion = totals["high"].astype(np.int64) << 32
        confusion += totals["low"]
        images = max(float(totals["images"]), 1.0)
        return {
            "val_mean_dice": float(
                segmentation.mean_dice_from_confusion(confusion)
            ),
            "val_mean_iou": float(
                segmentation.mean_iou_from_confusion(confusion)
            ),
            "val_image_dice": float(totals["image_dice"]) / images,
            "val_image_iou": float(totals["image_iou"]) / images,
            "val_pixel_accuracy": float(
                segmentation.pixel_accuracy_from_confusion(confusion)
            ),
            "val_loss": float(totals["loss"]) / max(float(totals["pixels"]), 1),
        }


def resized_to_canvas(
    outputs: Float[Array, "B h w C"],
    sizes: Int[Array, "B 2"],
    canvas: tuple[int, int],
) -> Float[Array, "B H W C"]:
    """Resizes each image's outputs to its own size, in one frame.

    Bilinear with half-pixel centres, as two products with small matrices;
    what lies beyond an image's size is not defined.

    Args:
      outputs: of the model.
      sizes: width and height of each image in the frame.
      canvas: height and width of the frame, H and W.
    """
    height, width = canvas
    down = _bilinear(sizes[:, 1], height, outputs.shape[1])  # [B, H, h]
    across = _bilinear(sizes[:, 0], width, outputs.shape[2])  # [B, W, w]
    rows = jnp.einsum("bHh,bhwc->bHwc", down, outputs)
    return jnp.einsum("bWw,bHwc->bHWc", across, rows)


def _bilinear(lengths: jax.Array, frame: int, length: int) -> jax.Array:
    """Interpolation matrices [B, frame, length] to `lengths` int [B]."""
    scale = length / jnp.maximum(lengths, 1)[:, None]  # [B, 1]
    where = (jnp.arange(frame) + 0.5) * scale - 0.5  # [B, frame]
    where = jnp.clip(where, 0, length - 1)[..., None]
    weights = 1 - jnp.abs(where - jnp.arange(length))
    return jnp.maximum(weights, 0).astype(jnp.float32)


def labels_of(mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Class indices int32, 0 where ignored, and which pixels count, float."""
    counted = mask != IGNORE
    return jnp.where(counted, mask, 0).astype(jnp.int32), counted.astype(
        jnp.float32
    )


def _confusions(labels, predicted, counted, logits) -> jax.Array:
    """float32 [B, C, C], exact: an image has less than 2^24 pixels here."""
    classes = logits.shape[-1]
    true = jax.nn.one_hot(labels, classes) * counted[..., None]
    found = jax.nn.one_hot(predicted, classes)
    return jnp.einsum("bhwt,bhwp->btp", true, found)


def _image_scores(confusion) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Dice and IoU of each image over its classes, 0 for one without pixels."""
    hits = jnp.diagonal(confusion, axis1=1, axis2=2)
    sizes = confusion.sum(1) + confusion.sum(2)  # [B, C]
    present = sizes > 0
    dice = jnp.where(present, 2 * hits / jnp.maximum(sizes, 1), 0.0)
    iou = dice / (2 - dice)
    count = jnp.maximum(present.sum(1), 1)
    seen = present.any(1).astype(jnp.float32)
    return dice.sum(1) / count, iou.sum(1) / count, seen
