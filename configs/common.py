"""What every recipe shares: the fields of a config, and their defaults.

A recipe is a file with `get_config(variant)`; it starts from `base()` and
lists its `stage(...)`s. Every field that exists anywhere is set here, so a
misspelt `--config.a.b=` is caught before anything runs.
"""

from __future__ import annotations

import os

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def base() -> ConfigDict:
    """Returns the config that recipes start from, as REFERENCE recipes do.

    224 px, AdamW, label smoothing .1, seed 42; each stage may say otherwise.
    """
    return ConfigDict(
        {
            "task": "classify",  # or "mae": masked autoencoding, no labels
            "model": "miniconvnext",
            # None: what the model's own paper says.
            "drop_path_rate": placeholder(float),
            # Run folder whose encoder to start from; a bare name is a run
            # beside this one, '' starts from nothing.
            "init_from": "",
            "mae": mae(),
            "image_size": 224,
            # Of activations (parameters stay float32): "float32", "bfloat16",
            # or "auto", which is bfloat16 but on CPUs, where that is slower.
            "dtype": "auto",
            # Computes activations again when going backward, to fit memory.
            "remat": False,
            # How devices share the work, see training/multihost/sharding.py.
            "mesh": {
                # Devices that keep one copy of the large parameters between
                # them; 1 gives each device a copy of its own, -1 takes all.
                "fsdp": 1,
            },
            "seed": 42,
            "data": data(),
            "augment": augment(),
            "mixing": mixing(),
            "stages": (),
            # Shortens (or stretches) all stages to this many epochs in sum;
            # 0 leaves them as written.
            "epochs": 0.0,
            "eval": {
                "batch_size": 128,
                "every_epochs": 1.0,
                # The reference's three test-time views; logits are averaged.
                "tta": ("center", "center_flip", "crop_flip"),
            },
            "checkpoint": {
                "keep_best": 1,
                # Ranks checkpoints: any metric of an evaluation. The highest
                # is best, of one that ends in "loss" the lowest.
                "metric": "val_macro_f1",
            },
            "log_every_steps": 20,
            "workers": -1,  # loader processes; -1 asks the machine
            # Compiled steps, channel statistics.
            "cache_dir": os.path.join(
                os.environ.get("XDG_CACHE_HOME") or "~/.cache", "sextet"
            ),
        }
    ).lock()  # A misspelt field in a recipe is an error, not a new field.


def data() -> ConfigDict:
    """Returns where images and labels come from (input_pipeline/sources/).

    An empty `root` means the digits that ship inside scikit-learn. The csv
    defaults are the competition's own names.
    """
    return ConfigDict(
        {
            "root": "",
            # '', 'digits', 'csv', 'folders', 'records' or 'tfds:<name>'
            "source": "",
            "answers": "train_answers.csv",
            "id_column": "img_id",
            "target_column": "target_feature",
            "train_images": "img_train",
            "test_images": "img_test",
            "extension": ".jpg",
            "sample_submission": "sample_submission.csv",
            "submission_id_column": "id",
            "test_folder": "",
            "tfds_split_train": "train",
            "tfds_split_test": "test",
            "tfds_image": "image",
            "tfds_label": "label",
            "folds": 5,
            "fold": 0,
            "folds_seed": 42,
            "folds_file": "",  # '' keeps them in <workdir>/folds.csv
            # Training draws class c in proportion to n_c^(1 - balance): 0 as
            # often as it is, 1 all classes alike.
            "balance": 0.0,
        }
    )


def augment() -> ConfigDict:
    """Returns what happens to one training image (input_pipeline/transforms/).

    RandomResizedCrop, flip, RandAugment(2, 9), ColorJitter(.4, .4, .4, .1).
    The stronger chain is off: each of its steps has a probability.
    """
    return ConfigDict(
        {
            "crop_scale": (0.5, 1.0),
            "crop_ratio": (0.75, 1.3333),
            "flip": 0.5,
            "randaugment_ops": 2,
            "randaugment_magnitude": 9,
            "jitter": (0.4, 0.4, 0.4, 0.1),
            "jitter_prob": 1.0,
            "grayscale": 0.0,
            # The stronger chain, see input_pipeline/transforms/degradations.py.
            "gamma": 0.0,
            "blur": 0.0,
            "downscale": 0.0,
            "jpeg": 0.0,
            "coarse_dropout": 0.0,
            # Colour and sharpness inside the training step: about a quarter of
            # the host's work. For accelerators that wait for images.
            "device": False,
        }
    )


def mixing() -> ConfigDict:
    """Returns what happens to a batch on device (transforms/mixing.py).

    Which of MixUp and CutMix, and how strongly, is each stage's own affair.
    """
    return ConfigDict(
        {
            "prob": 1.0,  # share of the batches that are mixed
            "per_element": False,  # draw for each image, not once a batch
            "erase_prob": 0.25,
            "erase_area": (0.02, 0.2),
            "erase_ratio": (0.3, 3.3),
        }
    )


def mae() -> ConfigDict:
    """Returns how a masked autoencoder is built (jax_models/mae.py).

    He et al. 2021; the decoder is the reference recipe's.
    """
    return ConfigDict(
        {
            "mask_ratio": 0.75,
            "decoder_width": 512,
            "decoder_depth": 4,
            "decoder_heads": 8,
            "decoder_mlp_width": 2048,
            # Each patch's pixels brought to mean 0 and variance 1 first.
            "normalize_targets": False,
        }
    )


def stage(**fields) -> ConfigDict:
    """Returns one stage of training: `fields` over the defaults.

    A stage starts from the best weights so far with a fresh AdamW.
    `learning_rate` is the peak; one_cycle begins at `learning_rate *
    start_factor`, and every schedule but constant and step ends at
    `end_rate`.

    Raises:
      ValueError: a field that no stage has.
    """
    config = ConfigDict(
        {
            "epochs": 75.0,
            "batch_size": 64,
            # one_cycle, cosine, warmup_cosine, warm_restarts, step, constant
            "schedule": "cosine",
            "learning_rate": 3e-4,
            # The classifier's own peak; 0 takes learning_rate. one_cycle
            # scales its whole curve, other schedules share the floor.
            "head_learning_rate": 0.0,
            "end_rate": 0.0,
            "start_factor": 0.1,  # one_cycle: first rate / peak
            # one_cycle, warmup_cosine: share of the stage before the peak
            "warmup": 0.1,
            "restart_epochs": 20.0,  # warm_restarts: first cycle
            "restart_factor": 2.0,  # warm_restarts: each next one, longer
            "step_epochs": 30.0,  # step: epochs between two drops
            "step_factor": 0.1,  # step: rate after a drop / before it
            "weight_decay": 1e-4,
            "betas": (0.9, 0.999),
            "clip_norm": 0.0,  # 0: no clipping
            # Modules that do not learn, BatchNorm statistics included:
            # "encoder" (all but the head) or paths such as "stages/0".
            "frozen": (),
            "loss": "cross_entropy",  # or "focal"
            "label_smoothing": 0.1,
            "focal_gamma": 2.0,
            # Weight of a class: its frequency to the power of minus this.
            "class_weight": 0.0,
            # Times log frequency, added to the logits while training; 1 is
            # the balanced softmax.
            "logit_adjustment": 0.0,
            "distill_from": "",  # the teacher's run; see init_from
            "distill_temperature": 4.0,
            "distill_alpha": 0.7,  # share of the teacher in the loss
            "ema_decay": 0.0,  # 0: no moving average of the weights
            # Parts that a batch goes through the model in, one after the
            # other, to fit the memory of the device; the gradient is theirs
            # together.
            "accumulate": 1,
            # Of AdamW's first moment; "bfloat16" takes half the memory.
            "momentum_dtype": "float32",
            # Ends the stage after as many evaluations without a new best.
            "patience": 0,
            "mixup_prob": 0.5,  # MixUp with this probability, else CutMix
            "mixup_alpha": 1.0,
            "cutmix_alpha": 1.0,
            # Fields of config.augment and config.mixing that differ here.
            "augment": ConfigDict(),
            "mixing": ConfigDict(),
        }
    )
    unknown = sorted(set(fields) - set(config))
    if unknown:
        raise ValueError(f"a stage has no field {', '.join(unknown)}")
    config.update(fields)
    return config.lock()


def one_cycle(learning_rate: float = 3e-4, **fields) -> ConfigDict:
    """Returns a stage with OC(lr): 10 % warm-up from lr/10, end lr/10/500."""
    return stage(
        schedule="one_cycle",
        learning_rate=learning_rate,
        end_rate=learning_rate / 10 / 500,
        **fields,
    )


def for_short(config: ConfigDict) -> ConfigDict:
    """Turns a recipe into its `:short`, of tens of epochs instead of hundreds.

    Half of the batches are mixed and nothing is erased: a short training does
    not overfit.
    """
    config.mixing.update(prob=0.5, erase_prob=0.0)
    return config


def for_digits(config: ConfigDict) -> ConfigDict:
    """Turns a recipe into its `:demo`: the digits, 32 px, minutes on a CPU.

    A mirrored or strongly sheared digit is another digit, so the demo keeps
    crops and the gentler ops only, and test-time views are crops.
    """
    config.image_size = 32
    config.augment.update(
        crop_scale=(0.8, 1.0),
        flip=0.0,
        randaugment_ops=1,
        randaugment_magnitude=5,
        jitter=(0.2, 0.2, 0.0, 0.0),
        grayscale=0.0,
    )
    config.mixing.update(prob=0.5, erase_prob=0.0)
    config.eval.tta = ("center", "crop")
    config.eval.every_epochs = 3.0
    config.log_every_steps = 10
    return config
