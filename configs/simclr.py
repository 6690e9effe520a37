"""Fields of contrastive pretraining, and the augmentation it lives on."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.fields import Field, at_least, declare, positive


def fields() -> ConfigDict:
    """Returns how SimCLR compares images (training/tasks/simclr.py).

    Chen et al. 2020; a temperature of .5 is theirs for small pictures and
    short trainings, .1 that for batches of thousands.
    """
    return declare(
        "simclr",
        width=Field(512, at_least(1)),  # inside the projector
        outputs=Field(128, at_least(2)),  # of the projector
        temperature=Field(0.5, positive),
    )


def augment(config: ConfigDict, strength: float = 1.0) -> None:
    """Sets the paper's augmentation (appendix A), and no mixing.

    Args:
      config: of a recipe.
      strength: of colours; .5 is the paper's for small pictures.
    """
    config.augment.update(
        crop_scale=(0.08, 1.0),
        flip=0.5,
        randaugment_ops=0,
        jitter=(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength),
        jitter_prob=0.8,
        grayscale=0.2,
        blur=0.5,
    )
    config.mixing.update(prob=0.0, erase_prob=0.0)
