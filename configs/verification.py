"""What recipes for pairs share: fields of their own, and how they augment."""

from __future__ import annotations

from collections.abc import Sequence

from ml_collections import ConfigDict

from configs import common
from configs.fields import Field, at_least, at_least_or_all, declare, one_of

# What a loss has of its own where a field is not set.
OWN = -1.0


def base() -> ConfigDict:
    """Returns the config that recipes for pairs start from.

    Pictures are aligned: they are cropped a little, mirrored, and their light
    changes. Nothing is mixed or erased.
    """
    config = common.base("verify", verify=verify())
    config.model = "embedding"
    config.data.source = "pairs"
    config.augment.update(
        crop_scale=(0.8, 1.0),
        crop_ratio=(0.9, 1.1111),
        flip=0.5,
        randaugment_ops=0,
        jitter=(0.0, 0.0, 0.0, 0.0),
        brightness_contrast=0.5,
    )
    config.mixing.update(prob=0.0, mixup_prob=0.0, erase_prob=0.0)
    config.eval.update(tta=("whole", "flip"), batch_size=128, every_epochs=2.0)
    return config


def _shares(value: Sequence[float]) -> str:
    if len(value) != 3 or min(value) < 0 or not sum(value):
        return (
            "it must be three numbers, none negative: of other identities, of "
            "one forged picture, of two"
        )
    return ""


def verify() -> ConfigDict:
    """Returns what verification alone asks (training/tasks/verify.py)."""
    return declare(
        "verify",
        # A batch is P identities with K pictures each; batch_size is P * K.
        identities=Field(20, at_least(2)),
        pictures=Field(4, at_least(2)),
        # What flags of forgeries are for: 'class' (those of an identity are a
        # class of their own), 'head' (a second head tells them from real
        # ones), 'class+head', or 'none' (they are left out of the training).
        forgeries=Field(
            "class+head", one_of("class", "head", "class+head", "none")
        ),
        forgery_weight=Field(0.5, at_least(0)),  # of the head's loss
        # Options of the losses, training/tasks/metric_objective.py; -1 takes
        # what each has of its own.
        margin=Field(OWN, at_least_or_all(0)),
        miner="all",
        hard_positives=(1, 1),
        hard_negatives=(1, 1),
        active_only=False,
        temperature=Field(OWN, at_least_or_all(0)),
        scale=Field(OWN, at_least_or_all(0)),
        class_margin=Field(OWN, at_least_or_all(0)),
        combined_margins=(1.0, 0.0, 0.4),
        # Embeddings of earlier batches that a batch is compared to, too.
        memory=Field(0, at_least(0)),
        # The pairs to validate on, see input_pipeline/validation_pairs.py.
        pairs_per_identity=Field(5, at_least(1)),
        negative_shares=Field((0.5, 0.3, 0.2), _shares),
    )


def stage(identities: int, pictures: int, **fields) -> ConfigDict:
    """Returns a one-cycle stage over batches of identities x pictures."""
    return common.one_cycle(batch_size=identities * pictures, **fields)


def set_batches(config: ConfigDict, identities: int, pictures: int) -> None:
    """Makes the batches P identities with K pictures each."""
    config.verify.update(identities=identities, pictures=pictures)


def for_digit_pairs(config: ConfigDict) -> ConfigDict:
    """Turns a recipe for pairs into its `:demo`: pairs of digits, 32 px.

    Digits 0 to 6 train, and pairs of the unseen 7 to 9 validate.
    """
    config.image_size = 32
    config.data.source = "digit_pairs"
    config.augment.update(
        crop_scale=(0.8, 1.0), flip=0.0, brightness_contrast=0.3, rotate=8.0
    )
    config.eval.update(tta=("whole",), every_epochs=2.0)
    config.verify.pairs_per_identity = 150  # There are three.
    config.log_every_steps = 10
    return config
