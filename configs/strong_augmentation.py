"""A stronger augmentation than the common one, by its name."""

from __future__ import annotations

from ml_collections import ConfigDict


def strong(config: ConfigDict) -> ConfigDict:
    """Adds what cameras and networks do to photos, and one eraser.

    RandAugment(2, 9) and crops of at least 65 %, then light, blur, losses of
    resolution and JPEG, each on some photos. Black holes on half of them are
    the only eraser: RandomErasing is off, as three in a row leave little to
    see. MixUp and CutMix stay as they are.
    """
    config.augment.update(
        crop_scale=(0.65, 1.0),
        randaugment_ops=2,
        randaugment_magnitude=9,
        jitter_prob=0.0,  # RandAugment and the next line change colours.
        brightness_contrast=0.4,
        gamma=0.2,
        blur=0.2,
        downscale=0.2,
        jpeg=0.2,
        coarse_dropout=0.5,
    )
    config.mixing.erase_prob = 0.0
    return config
