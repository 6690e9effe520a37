"""EfficientNetV2-M from scratch, 52.9 M parameters at 16 classes.

Paper: Tan & Le, "EfficientNetV2: Smaller Models and Faster Training", 2021
(the network; without its progressive image size). 350 epochs in five stages:
one-cycle with a fast head, then cosine stages with weaker mixing.

By arithmetic, not yet measured: 0.2 h for 9,900 photos on one H200, at 160
TFLOP/s and 5,300 images/s.

    python train.py --config=configs/efficientnetv2.py \
        --config.data.root=/data/poses --workdir=runs/efficientnetv2

Variants: `:short` is a small sibling for small machines and small photos,
`:demo` the digits.
"""

from configs import common


def get_config(variant: str = ""):
    """Returns the recipe; `variant` is '', 'short' or 'demo'."""
    config = common.base()
    config.model = "efficientnetv2_m"
    if variant == "":
        config.stages = (
            common.one_cycle(
                3e-4,
                epochs=50.0,
                batch_size=32,
                param_groups=(common.group(common.HEAD, rate=10.0),),
            ),
            _cosine(alpha=0.75),
            _cosine(alpha=0.5),
            _cosine(alpha=0.5),
            _cosine(alpha=0.5),
        )
    elif variant == "short":
        config = common.for_short(config)
        config.model = "efficientnetv2_demo"
        config.stages = (common.one_cycle(2e-3, epochs=60.0),)
    elif variant == "demo":
        config = common.for_digits(config)
        config.model = "efficientnetv2_demo"
        config.stages = (common.one_cycle(4e-3, epochs=15.0),)
    else:
        raise ValueError(f"variant {variant!r} is not one of short, demo")
    return config


def _cosine(alpha: float):
    return common.stage(
        epochs=75.0,
        batch_size=32,
        end_rate=1e-6,
        mixing={"mixup_alpha": alpha, "cutmix_alpha": alpha},
    )
