"""The grid of transfer learning: does it help here, and what with it?"""

from __future__ import annotations

from collections.abc import Sequence

from ml_collections import ConfigDict

from configs.common import AUTO
from core.errors import UserError
from studies.axes import Axis, Level
from studies.outcomes import SCORED_EXPORTS

# A line for each axis; the first level is the one that costs nothing.
_FLIPS = {
    "augment.crop_scale": "(1.0, 1.0)",
    "augment.crop_ratio": "(1.0, 1.0)",
    "augment.randaugment_ops": "0",
    "augment.jitter_prob": "0.0",
    "augment.grayscale": "0.0",
    "augment.flip": "0.5",
    "mixing.prob": "0.0",
    "mixing.erase_prob": "0.0",
}
_RICH = {
    "augment.crop_scale": "(0.5, 1.0)",
    "augment.crop_ratio": "(0.75, 1.3333)",
    "augment.randaugment_ops": "2",
    "augment.jitter_prob": "1.0",
    "augment.grayscale": "0.1",
    "augment.flip": "0.5",
    "mixing.prob": "0.5",
    "mixing.erase_prob": "0.25",
}


# How small photos come to the model's size.
_UPSCALING = {
    "bilinear": {"data.upscale": "bilinear"},
    "Lanczos": {"data.upscale": "lanczos"},
    "waifu2x": {"data.upscale": "waifu2x"},
}

# Of tasks whose images have masks, which are not enlarged.
_MASKED = frozenset({"segment"})

NAMES = ("start", "augmentation", "upscaling", "views")


def axes(config: ConfigDict, names: Sequence[str] = NAMES) -> list[Axis]:
    """Returns the axes for a recipe.

    Args:
      config: of the recipe: its `init_from`, or the ImageNet weights of its
        model, are what is transferred; its test-time views are what one view
        is compared with, where a study scores predictions.
      names: those that are wanted, of `NAMES`.

    Raises:
      UserError: a name is none of them, or nothing is left to vary.
    """
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise UserError(
            f"--axes names {', '.join(unknown)}; choose from {', '.join(NAMES)}"
        )
    weights = config.init_from or "imagenet"
    views = [name for name in config.eval.tta if name != AUTO]
    found = {
        "start": {
            "scratch": {"init_from": ""},
            "transfer": {"init_from": weights},
        },
        "augmentation": {"flips": _FLIPS, "rich": _RICH},
    }
    if config.task not in _MASKED:
        found["upscaling"] = _UPSCALING
    if len(views) > 1 and config.task in SCORED_EXPORTS:
        found["views"] = {
            "one view": {"eval.tta": str(tuple(views[:1]))},
            "TTA": {"eval.tta": str(tuple(views))},
        }
    made = [
        Axis(name, tuple(Level(n, fields) for n, fields in levels.items()))
        for name, levels in found.items()
        if name in names
    ]
    if not made:
        raise UserError(
            f"--axes names {', '.join(names)}, which this recipe cannot vary; "
            f"it can vary {', '.join(found)}"
        )
    return made
