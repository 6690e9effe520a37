"""ConvNeXt V2 from scratch: Small (49.6 M) or Base (87.7 M parameters).

Paper: Woo et al., "ConvNeXt V2: Co-designing and Scaling ConvNets with
Masked Autoencoders", 2023. 250 epochs in three stages with MixUp .8 and
CutMix 1.0 all the way, in bfloat16.

    python train.py --config=configs/convnextv2.py:small \
        --config.data.root=/data/poses --workdir=runs/convnextv2_small
    python train.py --config=configs/convnextv2.py:base \
        --config.data.root=/data/poses --workdir=runs/convnextv2_base

Variants: `:small` (also without a variant) and `:base` are the recipes; Small
with depths 3-3-27-3 is the reference solution's own size, Base the paper's.
`:short` and `:short_wide` are small siblings for small machines and small
photos, `:demo` and `:demo_wide` the digits.
"""

from configs import common

MODELS = {
    "": "convnextv2_small",
    "small": "convnextv2_small",
    "base": "convnextv2_base",
    "short": "convnextv2_atto",
    "short_wide": "convnextv2_femto",
    "demo": "convnextv2_demo",
    "demo_wide": "convnextv2_demo",
}


def get_config(variant: str = ""):
    """Returns the recipe; `variant` is one of the keys of `MODELS`."""
    if variant not in MODELS:
        raise ValueError(f"variant {variant!r} is not one of {list(MODELS)}")
    config = common.base()
    config.model = MODELS[variant]
    if variant.startswith("demo"):
        config = common.for_digits(config)
        config.stages = (_one_cycle(4e-3, epochs=18.0),)
    elif variant.startswith("short"):
        config.stages = (_one_cycle(1e-3, epochs=30.0),)
    else:
        config.dtype = "bfloat16"
        config.stages = (
            _one_cycle(3e-4, epochs=50.0, batch_size=32),
            _cosine(),
            _cosine(),
        )
    return config


def _one_cycle(learning_rate: float, **fields):
    return common.one_cycle(
        learning_rate, weight_decay=0.05, mixup_alpha=0.8, **fields
    )


def _cosine():
    return common.stage(
        epochs=100.0,
        batch_size=32,
        end_rate=1e-6,
        weight_decay=0.05,
        mixup_alpha=0.8,
    )
