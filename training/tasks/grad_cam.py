"""Where a classifier looks: Grad-CAM (Selvaraju et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int, UInt8
from PIL import Image

from core import paths
from core.atomic_files import atomic_write
from input_pipeline.loader import Transform
from input_pipeline.transforms import mixing
from jax_models import cpu_kernels
from jax_models.model import ImageModel
from training.loop.state import AbstractModel
from training.photos import PhotoFiles, Photos
from training.tasks.statistics import Statistics

# From nothing to the most: both ends differ in lightness as well as in hue,
# for people who do not see all colours.
_COLD, _HOT = np.array([0, 32, 76]), np.array([255, 234, 70])
_OPACITY = 0.55


def heat(
    model: ImageModel,
    images: Float[Array, "B H W 3"],
    classes: Int[Array, " B"],
) -> Float[Array, "B h w"]:
    """Returns where the evidence for a class of each image lies, from 0 to 1.

    The channels of the last map, weighted by the mean gradient of the class's
    logit; what speaks against the class is cut off. All 0 where nothing speaks
    for it.

    Args:
      model: in evaluation mode.
      images: normalised.
      classes: whose evidence is looked for.
    """
    maps = model.features(images)

    def score(maps: jax.Array) -> jax.Array:
        logits = model.head(maps)
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum()

    weights = jax.grad(score)(maps).mean(axis=(1, 2), keepdims=True)
    found = jax.nn.relu((weights * maps).sum(axis=-1)).astype(jnp.float32)
    most = found.max(axis=(1, 2), keepdims=True)
    return found / jnp.maximum(most, 1e-12)


def overlay(
    image: UInt8[np.ndarray, "H W 3"], found: Float32[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the image with the heat over it, from blue to yellow."""
    size = image.shape[1], image.shape[0]
    smooth = Image.fromarray(found).resize(size, Image.Resampling.BILINEAR)
    share = np.clip(np.asarray(smooth), 0, 1)[..., None]
    colours = _COLD + share * (_HOT - _COLD)
    return np.uint8(_OPACITY * colours + (1 - _OPACITY) * image + 0.5)


def make_heat_step(
    abstract_model: AbstractModel, statistics: Statistics, mesh: Mesh
) -> Callable[..., jax.Array]:
    """Returns the jitted step: (params, batch_stats, images, classes) -> heat.

    images: uint8 [B, H, W, 3]; classes: int [B]; see `heat`.

    Args:
      abstract_model: of the model.
      statistics: of the training rows.
      mesh: that computes.
    """

    @jax.jit
    @cpu_kernels.for_mesh(mesh)
    def step(params, batch_stats, images, classes):
        model = abstract_model.merge(params, batch_stats)
        model.eval()
        normal = mixing.normalize(images, statistics.mean, statistics.std)
        return heat(model, normal, classes)

    return step


def explain(
    step: Callable[..., jax.Array],
    photos: Photos,
    transform: Transform,
    answers: np.ndarray,
    files: PhotoFiles,
) -> list[str]:
    """Writes a picture for each photo.

    Args:
      step: from `make_heat_step`, given the weights.
      photos: to explain.
      transform: makes the one view that is looked at.
      answers: int [N], the class of each photo.
      files: where the pictures go.

    Returns:
      N paths; "" for a photo that cannot be read.
    """
    written = [""] * len(photos.rows)
    for batch in photos.batches(photos.examples, photos.rows, transform):
        images, rows = batch["image"][:, 0], batch["row"]
        found = np.asarray(step(images, answers[rows]))
        for index in np.flatnonzero((batch["weight"] > 0) & ~batch["bad"]):
            row = int(rows[index])
            picture = Image.fromarray(overlay(images[index], found[index]))
            path = paths.make_path(files.folder) / f"{files.names[row]}.png"
            with atomic_write(path) as whole:
                picture.save(whole, "PNG")
            written[row] = str(path)
    return written
