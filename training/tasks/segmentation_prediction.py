"""From images to scores of their pixels, at the size of each image.

An image is shown whole, resized to a square, or as windows
(`input_pipeline.transforms.windows`); flipped and scaled as the test-time
views say. What comes of the views is averaged as probabilities, each brought
to the image's size as logarithms. All of it goes by in stripes of few rows: the
scores of a photo of 24 megapixels in 19 classes would take 1.8 GB.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8
from ml_collections import ConfigDict

from configs import common
from core.errors import UserError
from input_pipeline.loader import Transform
from input_pipeline.sources.base import Examples
from input_pipeline.transforms import mixing, windows
from input_pipeline.transforms.views import WholeTransform, parse_whole_view
from jax_models import cpu_kernels
from training.loop.predict import predictions
from training.loop.state import AbstractModel
from training.multihost import comm
from training.tasks import segmentation_stripes as stripes_lib

_WINDOWS = "windows "  # Before their overlap.

# Images whose windows are known at once.
WINDOWED_AT_ONCE = 512

Flips = tuple[bool, bool]


def resize_rule(config: ConfigDict) -> str:
    """Returns how images are shown, as a saved run names it."""
    # Runs of earlier versions have no such field.
    overlap = config.segment.get("windows", 0.0)
    return f"{_WINDOWS}{overlap:g}" if overlap else "whole"


def windows_of(rule: str, config: ConfigDict) -> windows.Windows | None:
    """Returns how images are cut into windows; None where they are whole.

    A window shows what a training crop does in the mean: in the last stage,
    which ends as the model is used. Zoomed crops show less.

    Args:
      rule: from `resize_rule`.
      config: of the run.
    """
    if not rule.startswith(_WINDOWS):
        return None
    augment = common.merged(config, config.stages[-1], "augment")
    zoom = math.exp(sum(map(math.log, augment["zoom"])) / 2)
    share = min(1.0, sum(augment["crop_scale"]) / 2 / zoom**2)
    overlap = float(rule.removeprefix(_WINDOWS))
    return windows.Windows(config.image_size, overlap, share)


class PredictedImage(NamedTuple):
    """The scores of one image.

    Attributes:
      row: of the image.
      width: in pixels.
      height: in pixels.
      stripes: logarithms of its probabilities up to a constant, from top to
        bottom, float32 `[rows, width, C]`; to be read before the next image.
        None if the image cannot be read.
    """

    row: int
    width: int
    height: int
    stripes: stripes_lib.Stripes | None

    def mask(
        self, probabilities: Callable[[np.ndarray], None] | None = None
    ) -> UInt8[np.ndarray, "{self.height} {self.width}"]:
        """Returns the likeliest class of each pixel.

        Args:
          probabilities: called with those of each stripe, float32
            `[rows, width, C]`.
        """
        mask, top = np.empty((self.height, self.width), np.uint8), 0
        for stripe in self.stripes:
            mask[top : top + len(stripe)] = stripe.argmax(-1)
            top += len(stripe)
            if probabilities is not None:
                probabilities(stripes_lib.softmax(stripe))
        return mask


class BatchSource(Protocol):
    """What loads images: the data of a run, or new photos.

    Attributes:
      mesh: devices that share the batches.
    """

    mesh: Mesh

    def batches(
        self, examples: Examples, rows: np.ndarray, transform: Transform
    ) -> Iterator[dict[str, np.ndarray]]:
        """Returns batches as `loader.eval_batches`."""


class PixelPredictor:
    """Predicts every pixel of images with one model.

    Args:
      abstract_model: the model without its numbers.
      mean: float32 [3], of the channels.
      std: float32 [3], of the channels.
      size: side of what the model sees at scale 1.
      views: names of test-time views; see `parse_whole_view`.
      cut: how to cut images into windows; None shows them whole.
      mesh: devices that share the batches.
    """

    def __init__(
        self,
        abstract_model: AbstractModel,
        mean: np.ndarray,
        std: np.ndarray,
        size: int,
        views: Sequence[str],
        cut: windows.Windows | None,
        mesh: Mesh,
    ):
        self._size, self._cut = size, cut
        self._fill = tuple(np.round(255 * mean).astype(int).tolist())
        flips: dict[float, list[Flips]] = {}
        for view in views:
            flip, scale = parse_whole_view(view)
            flips.setdefault(scale, []).append(flip)
        self._steps = {
            scale: make_step(abstract_model, mean, std, found, mesh)
            for scale, found in flips.items()
        }
        self._shares = [len(found) / len(views) for found in flips.values()]

    def images(
        self,
        source: BatchSource,
        examples: Examples,
        rows: np.ndarray,
        params: dict,
        batch_stats: dict,
        sizes: np.ndarray | None = None,
    ) -> Iterator[PredictedImage]:
        """Yields the scores of images, in order.

        To be called in all processes, which load batches while they iterate;
        whether an image's stripes are read makes no difference. Of images in
        windows only a few are opened ahead: that bounds the memory for where
        the windows lie, and the wait for the first image.

        Args:
          source: what loads them.
          examples: of the images.
          rows: int [N], which of them.
          params: of the model.
          batch_stats: of the same.
          sizes: int [N, 2], width and height of each where they are known.

        Raises:
          UserError: an image could be read at first and then no more.
        """
        weights = params, batch_stats
        if self._cut is None:
            yield from self._merged(
                self._whole(source, examples, rows, weights, scale)
                for scale in self._steps
            )
            return
        for start in range(0, len(rows), WINDOWED_AT_ONCE):
            part = slice(start, start + WINDOWED_AT_ONCE)
            known = (
                _sizes(examples, rows[part]) if sizes is None else sizes[part]
            )
            yield from self._merged(
                self._in_windows(
                    source, examples, rows[part], weights, known, scale
                )
                for scale in self._steps
            )

    def _merged(
        self, streams: Iterable[Iterator[PredictedImage]]
    ) -> Iterator[PredictedImage]:
        """The images of all scales as one."""
        for parts in zip(*streams, strict=True):
            image = parts[0]
            if any(part.stripes is None for part in parts):
                yield image._replace(stripes=None)
                continue
            stripes = image.stripes
            if len(parts) > 1:
                stripes = self._averaged(parts)
            stripes = _Repeating(stripes)
            yield image._replace(stripes=stripes)
            # In every process, so that all load the same batches in turn.
            _exhaust(stripes)

    def _averaged(self, parts: Sequence[PredictedImage]) -> stripes_lib.Stripes:
        for stripes in zip(*(part.stripes for part in parts), strict=True):
            mean = sum(
                share * stripes_lib.softmax(stripe)
                for share, stripe in zip(self._shares, stripes, strict=True)
            )
            yield np.log(np.maximum(mean, stripes_lib.TINY))

    def _whole(
        self, source, examples, rows, weights, scale
    ) -> Iterator[PredictedImage]:
        size = max(1, round(self._size * scale))
        batches = source.batches(examples, rows, WholeTransform(size))
        for batch in predictions(
            self._steps[scale], *weights, batches, rows, source.mesh
        ):
            for row, outputs, (width, height), bad in zip(
                batch["row"],
                batch["outputs"],
                batch["size"].tolist(),
                batch["bad"],
                strict=True,
            ):
                stripes = (
                    None
                    if bad
                    else stripes_lib.enlarged(outputs, width, height)
                )
                yield PredictedImage(int(row), width, height, stripes)

    def _in_windows(
        self, source, examples, rows, weights, sizes, scale
    ) -> Iterator[PredictedImage]:
        cut = dataclasses.replace(self._cut, scale=scale)
        cells = windows.cut(examples, rows, sizes, cut)
        numbers = np.arange(len(cells))
        batches = source.batches(
            cells, numbers, windows.WindowTransform(cut.size, self._fill)
        )
        found = (
            window
            for batch in predictions(
                self._steps[scale], *weights, batches, numbers, source.mesh
            )
            for window in zip(batch["outputs"], batch["bad"], strict=True)
        )
        for row, size in zip(rows, sizes.tolist(), strict=True):
            width, height = size
            stripes, rest = None, iter(())
            first, bad = next(found)
            if width and height:
                grid = cut.grid(width, height)
                rest = itertools.islice(found, len(grid) - 1)
                if not bad:
                    name = examples.path(int(row)) or examples.ids[row]
                    outputs = itertools.chain([first], _readable(rest, name))
                    lines = stripes_lib.joined_windows(outputs, grid, cut.size)
                    stripes = stripes_lib.resized(
                        lines, grid.width, grid.height, width, height
                    )
            yield PredictedImage(int(row), width, height, stripes)
            _exhaust(rest)
        _exhaust(found)  # So that it is checked that no window is missing.


def _sizes(examples: Examples, rows: np.ndarray) -> np.ndarray:
    """Width and height of images, int [N, 2], the same in all processes.

    Were a photo unreadable in one alone, that one would have fewer windows than
    the others, which would wait for it for ever.
    """
    return np.array(
        comm.run_on_primary(
            lambda: [windows.image_size(examples, int(row)) for row in rows]
        )
    )


class _Repeating(Iterator[np.ndarray]):
    """Stripes that raise an error again to whoever asks for the next one.

    The process that reads them may have put the error aside; it must end at
    the same batch as those that do not.
    """

    def __init__(self, stripes: stripes_lib.Stripes):
        self._stripes = stripes
        self._error: UserError | None = None

    def __next__(self) -> np.ndarray:
        if self._error is not None:
            raise self._error
        try:
            return next(self._stripes)
        except UserError as error:
            self._error = error
            raise


def _readable(
    found: Iterator[tuple[np.ndarray, bool]], name: str
) -> Iterator[np.ndarray]:
    for outputs, bad in found:
        if bad:
            raise UserError(
                f"{name} could be read at first and then no more; see to the "
                "disk, and run the same command again"
            )
        yield outputs


def _exhaust(iterator: Iterator) -> None:
    collections.deque(iterator, maxlen=0)


def make_step(
    abstract_model: AbstractModel,
    mean: np.ndarray,
    std: np.ndarray,
    flips: Sequence[Flips],
    mesh: Mesh,
) -> Callable[[dict, dict, jax.Array], jax.Array]:
    """Returns the jitted step: (params, batch_stats, images) -> outputs.

    images: uint8 [B, 1, S, S, 3]. outputs: float32 [B, S, S, C], probabilities
    of the classes, averaged over the flips (left to right, upside down).
    """

    @jax.jit
    @cpu_kernels.for_mesh(mesh)
    def step(params, batch_stats, images, mean, std):
        model = abstract_model.merge(params, batch_stats)
        model.eval()
        images = mixing.normalize(images[:, 0], mean, std)
        total = 0.0
        for flip in flips:
            axes = [a for a, on in zip((2, 1), flip, strict=True) if on]
            logits = model(jax.numpy.flip(images, axes)).astype("float32")
            total += jax.numpy.flip(jax.nn.softmax(logits), axes)
        return total / len(flips)

    # As arguments: folds differ in them, and need not compile anew.
    return functools.partial(_with_channels, step, mean, std)


def _with_channels(step, mean, std, params, batch_stats, images):
    return step(params, batch_stats, images, mean, std)
