"""TinyViT-11M from scratch, 10.6 M parameters at 16 classes.

Paper: Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision
Transformers", 2022 (architecture; trained here without distillation).
275 epochs in four stages: one-cycle, then cosine stages with ever weaker
mixing and ever lower floors.

By arithmetic, not yet measured: 0.15 h for 9,900 photos on one H200, at 160
TFLOP/s and 5,300 images/s.

    python train.py --config=configs/tinyvit.py \
        --config.data.root=/data/poses --workdir=runs/tinyvit

Variants: `:short` is a small sibling for small machines and small photos,
`:demo` the digits in about a minute; `:strong` and `:short_strong` are the
same on photos that are augmented more (configs/strong_augmentation.py).
"""

from configs import common
from configs.strong_augmentation import strong


def get_config(variant: str = ""):
    """Returns the recipe.

    Args:
      variant: '', 'strong', 'short', 'short_strong' or 'demo'.
    """
    config = common.base()
    config.model = "tinyvit_11m"
    if variant in ("", "strong"):
        config.stages = (
            common.one_cycle(3e-4, epochs=75.0),
            _cosine(75.0, end_rate=1e-6, alpha=0.75),
            _cosine(75.0, end_rate=1e-7, alpha=0.5),
            _cosine(50.0, end_rate=1e-8, alpha=0.25),
        )
    elif variant in ("short", "short_strong"):
        config = common.for_short(config)
        config.model = "tinyvit_demo"
        config.stages = (common.one_cycle(2e-3, epochs=60.0, clip_norm=1.0),)
    elif variant == "demo":
        config = common.for_digits(config)
        config.model = "tinyvit_demo"
        config.stages = (common.one_cycle(2e-3, epochs=18.0, clip_norm=1.0),)
    else:
        raise ValueError(
            f"variant {variant!r} is not one of strong, short, short_strong, "
            "demo"
        )
    return strong(config) if variant.endswith("strong") else config


def _cosine(epochs: float, end_rate: float, alpha: float):
    return common.stage(
        epochs=epochs,
        end_rate=end_rate,
        mixing={"mixup_alpha": alpha, "cutmix_alpha": alpha},
    )
