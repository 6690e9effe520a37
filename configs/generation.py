"""What recipes that generate images share: fields of their own, and stages."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common
from configs.fields import (
    Field,
    at_least,
    below_one,
    declare,
    not_negative,
    one_of,
    share,
)

SAMPLERS = ("euler", "heun")


def base() -> ConfigDict:
    """Returns the config that recipes for generation start from.

    The loader hands images over as they are: how they are augmented is a
    condition of the network, so it happens in the step (`generate.augment`).
    """
    config = common.base("generate", generate=generate())
    config.augment.update(UNCHANGED)
    config.mixing.update(prob=0.0, erase_prob=0.0)
    config.eval.update(tta=("square",), batch_size=64, every_epochs=50.0)
    return config


# Fields of `config.augment` under which the loader only cuts the square in the
# middle.
UNCHANGED = {
    "crop_scale": (1.0, 1.0),
    "crop_ratio": (1.0, 1.0),
    "crop_max_share": 1.0,
    "zoom": (1.0, 1.0),
    "flip": 0.0,
    "randaugment_ops": 0,
    "jitter": (0.0, 0.0, 0.0, 0.0),
}


def generate() -> ConfigDict:
    """Returns what generation alone asks (training/tasks/generate.py)."""
    return declare(
        "generate",
        # Probability of each change of a training image: size, turn, aspect
        # ratio, position, brightness, contrast (Karras et al. 2022).
        augment=Field(0.12, share),
        flip=Field(0.5, share),  # probability of a mirror image
        # Mean of the logit of the times that are trained at. Above 0 more of
        # them lie near the noise, where a class decides what is to come.
        time_shift=0.0,
        # Share of the rows that are trained without their class.
        label_drop=Field(0.1, share),
        # From noise to images: `heun` asks the network twice a step.
        sampler=Field("heun", one_of(*SAMPLERS)),
        steps=Field(20, at_least(1)),
        # 1 samples the class as learned; more is more typical of it, and less
        # diverse (Ho & Salimans 2022).
        guidance=Field(1.0, not_negative),
        # Images that are exported, in all, as often of each class as there
        # are training images; 0 makes as many as those.
        count=Field(0, at_least(0)),
        sample_seed=Field(0, at_least(0)),
        # Images that a device makes at a time.
        chunk=Field(50, at_least(1)),
        # A classifier's run over the same fold: features for the scores.
        judge="",
        # Leaves out what the judge thinks is of its class with less
        # probability; 0 keeps all.
        filter=Field(0.0, below_one),
    )


def stage(learning_rate: float, **fields) -> ConfigDict:
    """Returns a stage of Adam with warm-up, clipping and averaged weights."""
    return common.stage(
        **{
            "schedule": "warmup_cosine",
            "learning_rate": learning_rate,
            "warmup": 0.05,
            "weight_decay": 0.0,
            "clip_norm": 1.0,
            "ema_decay": 0.999,
            **fields,
        }
    )


def for_digits(config: ConfigDict) -> ConfigDict:
    """Turns a recipe into its `:demo`: the digits, 32 px, minutes on a CPU."""
    config.image_size = 32
    # A mirrored digit is another digit.
    config.generate.flip = 0.0
    config.log_every_steps = 50
    return config
