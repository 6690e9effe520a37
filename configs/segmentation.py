"""What recipes for masks share: fields of their own, and how they augment."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common
from configs.fields import Field, declare, up_to


def base() -> ConfigDict:
    """Returns the config that recipes for masks start from.

    Crops, flips, turns and gentle colours; nothing is mixed, and a picture is
    validated whole.
    """
    config = common.base("segment", segment=segment())
    config.augment.update(
        crop_scale=(0.5, 1.0),
        flip=0.5,
        randaugment_ops=0,
        jitter=(0.0, 0.0, 0.0, 0.0),
        rotate=15.0,
        brightness_contrast=0.5,
        noise=0.3,
    )
    config.mixing.update(prob=0.0, mixup_prob=0.0, erase_prob=0.0)
    config.segment.class_weights = "sqrt_median"
    config.eval.update(tta=("whole", "flip"), batch_size=32)
    return config


def segment() -> ConfigDict:
    """Returns what a segmentation alone asks (training/tasks/segment.py)."""
    return declare(
        "segment",
        # In the loss: 'median' frequency balancing, 'sqrt_median', 'inverse',
        # or a number for each class, "0.1,1.2,1.2"; '' weighs all alike.
        class_weights="",
        # Validation and new images, after the training: 0 squeezes the whole
        # image into a square, 0.5 cuts it into windows as large as training
        # crops, which overlap by half.
        windows=Field(0.0, up_to(0.9)),
        # Whether probabilities/<split>/<id>.npz are written, too.
        probabilities=False,
    )


def stage(learning_rate: float, **fields) -> ConfigDict:
    """Returns a one-cycle stage of cross-entropy and Dice."""
    return common.one_cycle(
        learning_rate,
        **{"loss": "cross_entropy+dice", "label_smoothing": 0.0, **fields},
    )


def for_pretrained(config: ConfigDict) -> ConfigDict:
    """Turns a recipe for masks into its `:pretrained`: a short fine-tuning.

    Twenty epochs at 192 px, in small batches: some hundred photos make few
    steps. What comes from elsewhere learns at a third of the rate; weights are
    averaged over the last hundred steps.
    """
    config.init_from = "imagenet"
    config.image_size = 192
    # So few epochs see hardly any more of an object in smaller crops.
    config.augment.crop_scale = (0.6, 1.0)
    config.stages = (
        stage(
            2e-3,
            epochs=20.0,
            batch_size=4,
            param_groups=(common.group(r"^encoder/", rate=0.3),),
            ema_decay=0.99,
        ),
    )
    config.eval.every_epochs = 5.0
    return config


def for_digit_scenes(config: ConfigDict) -> ConfigDict:
    """Turns a recipe for masks into its `:demo`: scenes of digits, 64 px."""
    config.image_size = 64
    config.data.source = "digit_scenes"
    # A mirrored digit is another digit.
    config.augment.update(
        crop_scale=(0.7, 1.0), flip=0.0, rotate=8.0, brightness_contrast=0.3
    )
    config.eval.update(tta=("whole",), every_epochs=3.0)
    config.log_every_steps = 10
    return config
