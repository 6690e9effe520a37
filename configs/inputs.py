"""Fields about images: where they come from, and what happens to them.

Part of every config, see configs/common.py.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.fields import (
    Field,
    ascending,
    at_least,
    between,
    declare,
    not_negative,
    one_of,
    positive,
    share,
    up_to,
)

UPSCALERS = ("bilinear", "bicubic", "lanczos", "waifu2x")


def data() -> ConfigDict:
    """Returns where images and labels come from (input_pipeline/sources/).

    An empty `root` means the digits that ship inside scikit-learn. The csv
    defaults are the competition's own names.
    """
    return declare(
        "data",
        root="",
        # '', 'digits', 'csv', 'folders', 'masks', 'pairs', 'records' or
        # 'tfds:<name>'
        source="",
        answers="train_answers.csv",
        id_column="img_id",
        target_column="target_feature",
        # Column of the csv with a group, such as a person: its examples are
        # all in one fold. '' makes every row a group of its own.
        group_column="",
        groups_file="",  # a csv beside it that has the column; '' if it has
        train_images="img_train",
        test_images="img_test",
        extension=".jpg",
        clean_impulses=False,  # fills black or white single pixels everywhere
        # Enlarges photos that are smaller than the model's images, with one of
        # Pillow's filters or a network: '' leaves it to the crops (bilinear).
        upscale=Field("", one_of("", *UPSCALERS)),
        sample_submission="sample_submission.csv",
        submission_id_column="id",
        test_folder="",
        # Of the source `masks`, beside train_images and test_images.
        train_masks="mask_train",
        val_images="img_val",  # '' or absent: the training images are folded
        val_masks="mask_val",
        mask_suffix="",  # of a mask's name behind its image's, e.g. "_mask"
        class_list="classes.csv",  # index,name[,ignore][,r,g,b]
        # Values in the files of the classes, in order, e.g. "0,255"; '' takes
        # those of the list, or the indices 0, 1, ...
        mask_values="",
        ignore_index=Field(-1, between(-2, 256)),  # -1: as the list says
        identities="train",  # of `pairs`; see sources/pairs.py
        forgeries="meta.json",
        pairs="test",
        tfds_split_train="train",
        tfds_split_test="test",
        tfds_image="image",
        tfds_label="label",
        folds=Field(5, at_least(2)),
        fold=0,
        folds_seed=Field(42, at_least(0)),
        folds_file="",  # '' keeps them in <workdir>/folds.csv
        # A generator's run, to train on its images besides the photos.
        generated="",
        generated_share=Field(0.5, share),
        generated_weight=Field(1.0, positive),  # each counts in the loss
        # Classes whose images are taken: () all, 'rare' those with fewer
        # photos than a class has on average.
        generated_classes=(),
        # Training draws class c in proportion to n_c^(1 - balance): 0 as
        # often as it is, 1 all classes alike.
        balance=Field(0.0, share),
    )


def augment() -> ConfigDict:
    """Returns what happens to one training image (input_pipeline/transforms/).

    RandomResizedCrop, flip, RandAugment(2, 9), ColorJitter(.4, .4, .4, .1).
    The stronger chain is off: each of its steps has a probability.
    """
    return declare(
        "augment",
        crop_scale=Field((0.5, 1.0), ascending(1)),
        crop_ratio=Field((0.75, 1.3333), ascending()),
        flip=Field(0.5, share),
        randaugment_ops=Field(2, at_least(0)),
        randaugment_magnitude=Field(9, up_to(30)),
        jitter=Field((0.4, 0.4, 0.4, 0.1), _jitter),
        jitter_prob=Field(1.0, share),
        grayscale=Field(0.0, share),
        # The stronger chain, see transforms/degradations.py.
        gamma=Field(0.0, share),
        blur=Field(0.0, share),
        downscale=Field(0.0, share),
        jpeg=Field(0.0, share),
        coarse_dropout=Field(0.0, share),
        # For masks, which turn with their images; see transforms/policy.py.
        flip_vertical=Field(0.0, share),
        transpose=Field(0.0, share),
        rotate=Field(0.0, not_negative),  # degrees
        zoom=Field((1.0, 1.0), ascending()),
        crop_max_share=Field(1.0, share),
        brightness_contrast=Field(0.0, share),
        noise=Field(0.0, share),
        # Colour and sharpness inside the training step: about a quarter of
        # the host's work. For accelerators that wait for images.
        device=False,
    )


def _jitter(value: tuple[float, ...]) -> str:
    if len(value) != 4 or min(value) < 0 or value[3] > 0.5:
        return (
            "it must be four numbers, none negative, the last (hue) at most 0.5"
        )
    return ""


def mixing() -> ConfigDict:
    """Returns what happens to a batch on device (transforms/mixing.py)."""
    return declare(
        "mixing",
        prob=Field(1.0, share),  # share of the batches that are mixed
        mixup_prob=Field(0.5, share),  # MixUp with this probability, or CutMix
        mixup_alpha=Field(1.0, positive),
        cutmix_alpha=Field(1.0, positive),
        erase_prob=Field(0.25, share),
        erase_area=Field((0.02, 0.2), ascending(1)),
        erase_ratio=Field((0.3, 3.3), ascending()),
    )
