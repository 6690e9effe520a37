"""TinyViT-11M that learns from a larger network, 195 epochs.

Papers: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015
(soft targets, T^2); Beyer et al., "Knowledge Distillation: A Good Teacher Is
Patient and Consistent", CVPR 2022 (the teacher sees the same mixed crop). Seven
tenths of the loss are T^2 KL at T 4, the rest is the cross-entropy with the
labels, without smoothing. Run configs/convnextv2_small.py before it, over the
same folds, into a folder convnextv2_small beside this run's, or name another
teacher with --config.stages[0].distill_from and so on; of a teacher over all
folds the model of this fold is taken.

By arithmetic, not yet measured: 0.3 h for 9,900 photos on one H200, at 160
TFLOP/s and 5,300 images/s.

    python train.py --config=configs/tinyvit_distilled.py \
        --config.data.root=/data/poses --workdir=runs/tinyvit_distilled

Variants: `:short` for small machines and small photos, `:demo` the digits.
"""

from configs import common

TEACHER = "convnextv2_small"


def get_config(variant: str = ""):
    """Returns the recipe; `variant` is '', 'short' or 'demo'."""
    config = common.base()
    config.model = "tinyvit_11m"
    # MixUp on three tenths of the mixed batches, the rest is CutMix.
    config.mixing.update(mixup_prob=0.3, prob=0.75)
    if variant == "":
        config.stages = (
            common.one_cycle(3e-4, epochs=45.0, **_distilled(alpha=0.5)),
            common.stage(epochs=75.0, end_rate=1e-6, **_distilled(alpha=0.4)),
            common.stage(epochs=75.0, end_rate=1e-7, **_distilled(alpha=0.5)),
        )
    elif variant == "short":
        config = common.for_short(config)
        config.model = "tinyvit_demo"
        config.stages = (
            common.one_cycle(
                2e-3, epochs=60.0, clip_norm=1.0, **_distilled(alpha=0.5)
            ),
        )
    elif variant == "demo":
        config = common.for_digits(config)
        config.model = "tinyvit_demo"
        config.stages = (
            common.one_cycle(
                2e-3, epochs=18.0, clip_norm=1.0, **_distilled(alpha=0.5)
            ),
        )
    else:
        raise ValueError(f"variant {variant!r} is not one of short, demo")
    return config


def _distilled(alpha: float):
    return {
        "distill_from": TEACHER,
        "distill_temperature": 4.0,
        "distill_alpha": 0.7,
        "label_smoothing": 0.0,  # The teacher's answers are soft already.
        "mixing": {"mixup_alpha": alpha, "cutmix_alpha": alpha},
    }
