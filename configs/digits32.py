"""What recipes for digits of 32x32 pixels share: data, augmentation, stages.

The layout is the street-digits competition's, with the set-up of each picture
in `train_groups.csv`: pictures of one set-up are near twins, and a fold that
has some of them tells nothing about new ones. Impulse noise is cleaned
wherever pictures are read. New set-ups have other colours and typefaces, so
hues are drawn from the whole circle and RandAugment makes two changes, such as
a shear or a shift. Digits are also turned by up to 12 degrees, and are never
mirrored. Every epoch draws its changes anew; validation has none.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common


def base(model: str, **model_options) -> ConfigDict:
    """Returns the config that these recipes start from.

    Args:
      model: of `jax_models.list_models()`.
      **model_options: of the architecture.
    """
    config = common.base()
    config.model = model
    config.model_options.update(model_options)
    config.image_size = 32
    config.data.update(
        id_column="Id",
        target_column="Category",
        submission_id_column="Id",
        extension=".png",
        groups_file="train_groups.csv",
        group_column="group",
        clean_impulses=True,
    )
    config.augment.update(
        crop_scale=(0.7, 1.0),
        crop_ratio=(0.85, 1.18),
        flip=0.0,
        randaugment_ops=2,
        jitter=(0.4, 0.4, 0.5, 0.5),
        grayscale=0.1,
        rotate=12.0,
        blur=0.1,
    )
    config.mixing.update(prob=0.5, erase_prob=0.25)
    config.eval.tta = (common.AUTO, "center", "crop")
    config.checkpoint.metric = "val_accuracy"
    return config


def stages(
    config: ConfigDict, variant: str, learning_rate: float, epochs: int
) -> ConfigDict:
    """Returns the config with one one-cycle stage.

    Args:
      config: from `base`; changed in place.
      variant: '' or 'short', a training that 2 cores finish.
      learning_rate: the peak.
      epochs: of `:short`; the whole recipe takes 160, as published for SVHN.
    """
    if variant not in ("", "short"):
        raise ValueError(f"variant {variant!r} is not short")
    if variant == "short":
        config = common.for_short(config)
        config.mixing.prob = 0.25
        config.eval.every_epochs = 2.0
    config.stages = (
        common.one_cycle(
            learning_rate,
            epochs=160.0 if variant == "" else float(epochs),
            weight_decay=0.05,
            warmup=0.2,
        ),
    )
    return config
