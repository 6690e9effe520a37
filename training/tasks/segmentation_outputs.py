"""From a segmentation network's logits to masks and scores."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from input_pipeline.sources.mask_format import IGNORE
from input_pipeline.transforms import mixing
from input_pipeline.transforms.views import WHOLE_VIEWS
from jax_models import cpu_kernels
from metrics import segmentation
from training.loop.state import AbstractModel

# Pixels of a photo that are brought to full size at once, to bound memory.
STRIPE_PIXELS = 1 << 20


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
    down = _bilinear(jnp, sizes[:, 1], height, outputs.shape[1])  # [B, H, h]
    across = _bilinear(jnp, sizes[:, 0], width, outputs.shape[2])  # [B, W, w]
    rows = jnp.einsum("bHh,bhwc->bHwc", down, outputs)
    return jnp.einsum("bWw,bHwc->bHWc", across, rows)


def full_size_mask(
    outputs: Float[np.ndarray, "h w C"], width: int, height: int
) -> UInt8[np.ndarray, "{height} {width}"]:
    """Returns an image's mask at its own size.

    The same resizing as `resized_to_canvas`, before the argmax, in stripes: a
    photo of 24 megapixels in 12 classes would take more than a gigabyte.
    """
    across = _bilinear(np, np.array([width]), width, outputs.shape[1])[0]
    wide = np.einsum("Ww,hwc->hWc", across, outputs, optimize=True)
    # Of the rows, each takes two.
    where = (np.arange(height) + 0.5) * len(outputs) / height - 0.5
    where = np.clip(where, 0, len(outputs) - 1)
    above = np.minimum(where.astype(int), max(len(outputs) - 2, 0))
    share = (where - above).astype(np.float32)[:, None, None]
    below = np.minimum(above + 1, len(outputs) - 1)
    mask = np.empty((height, width), np.uint8)
    step = max(1, STRIPE_PIXELS // width)
    for top in range(0, height, step):
        part = slice(top, top + step)
        stripe = (1 - share[part]) * wide[above[part]]  # [s, W, C]
        stripe += share[part] * wide[below[part]]
        mask[part] = stripe.argmax(-1)
    return mask


def _bilinear(xp, lengths, frame: int, length: int):
    """Interpolation matrices [B, frame, length] to `lengths` int [B]."""
    scale = length / xp.maximum(lengths, 1)[:, None]  # [B, 1]
    where = (xp.arange(frame) + 0.5) * scale - 0.5  # [B, frame]
    where = xp.clip(where, 0, length - 1)[..., None]
    weights = 1 - xp.abs(where - xp.arange(length))
    return xp.maximum(weights, 0).astype(xp.float32)


def make_mask_step(
    abstract_model: AbstractModel,
    mean: np.ndarray,
    std: np.ndarray,
    views: Sequence[str],
    mesh: Mesh,
) -> Callable[[dict, dict, jax.Array], jax.Array]:
    """Returns the jitted step: (params, batch_stats, images) -> outputs.

    images: uint8 [B, 1, S, S, 3]. outputs: float32 [B, S, S, C], logarithms
    of the classes' probabilities, averaged over the views (`WHOLE_VIEWS`).
    """

    @jax.jit
    @cpu_kernels.for_mesh(mesh)
    def step(params, batch_stats, images, mean, std):
        model = abstract_model.merge(params, batch_stats)
        model.eval()
        images = mixing.normalize(images[:, 0], mean, std)
        total = 0.0
        for view in views:
            axes = [
                axis
                for axis, flipped in zip((2, 1), WHOLE_VIEWS[view], strict=True)
                if flipped
            ]
            logits = model(jnp.flip(images, axes)).astype(jnp.float32)
            total += jnp.flip(jax.nn.softmax(logits), axes)
        return jnp.log(jnp.maximum(total / len(views), 1e-30))

    # As arguments: folds differ in them, and need not compile anew.
    return functools.partial(_with_channels, step, mean, std)


def _with_channels(step, mean, std, params, batch_stats, images):
    return step(params, batch_stats, images, mean, std)


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
