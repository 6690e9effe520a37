"""`data.upscale` of a run: small photos enlarged, here with a network too."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from core import weight_packages
from input_pipeline.sources import upscaled
from input_pipeline.sources.base import Examples, Source
from input_pipeline.transforms.views import CENTER_CROP
from jax_models.waifu2x import Waifu2x
from training.multihost import comm


def step_of(config: ConfigDict, cache: Path) -> upscaled.Upscaling | None:
    """Returns how a run enlarges small photos; None if it does not.

    Args:
      config: of the run.
      cache: folder that keeps what a network has made.

    Raises:
      UserError: the network's weights are not installed.
    """
    # What an older run has saved of its data lacks the field.
    method = config.data.get("upscale", "")
    if not method:
        return None
    if method == weight_packages.WAIFU2X:
        weight_packages.path_of(method)
    return upscaled.Upscaling(method, side_of(config), cache / "upscaled")


def side_of(config: ConfigDict) -> int:
    """Returns what shorter sides are enlarged to, in pixels.

    It is the size at which the view `center` is cut out.
    """
    return round(config.image_size / CENTER_CROP)


def enlarged(source: Source, config: ConfigDict, cache: Path) -> Source:
    """Returns the source as `data.upscale` wants it; see `step_of`."""
    step = step_of(config, cache)
    return source if step is None else upscaled.upscaled_source(source, step)


def prepare_everywhere(source: Source) -> None:
    """Calls `prepare` for a source in all processes."""
    comm.run_on_all(lambda: prepare(source.labelled, source.test))


def prepare(*splits: Examples | None) -> None:
    """Enlarges what a network has to, once.

    Args:
      *splits: examples, such as those to train on and those to predict.

    Raises:
      UserError: the weights are not installed, or the cache cannot be written.
    """
    double = None
    for examples in splits:
        if (
            not isinstance(examples, upscaled.UpscaledExamples)
            or not examples.step.by_network
        ):
            continue
        rows = upscaled.lacking(examples, np.arange(len(examples)))
        if not len(rows):
            continue
        double = double or Waifu2x()
        # Processes that share a folder begin in different places.
        turn = jax.process_index() * len(rows) // jax.process_count()
        upscaled.fill(examples, np.roll(rows, -turn), double)
