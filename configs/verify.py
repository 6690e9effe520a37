"""Embeddings by pairs that are hard, and a second head for forgeries.

The multi-similarity loss (Wang et al., "Multi-Similarity Loss with General
Pair Weighting", CVPR 2019, arXiv 1904.06627) over pairs of identity and
forgery on a ResNet-18 with the stem for small pictures, pooled in each cell of
a grid, 256 dimensions; a second head tells forged pictures from real ones by
every map of the network. A pair's similarity is what a logistic regression on
validation pairs makes of the cosine and of both pictures' odds.

    python train.py --config=configs/verify.py \\
        --config.data.root=/data/faces --workdir=runs/verify

What lies where: docs/verification.md. Variants: `:short` is a narrow network
for small machines, `:demo` is pairs of digits, minutes on a CPU.
"""

from ml_collections import ConfigDict

from configs import common, verification


def get_config(variant: str = ""):
    """Returns the recipe; `variant` is '', 'pretrained', 'short' or 'demo'."""
    config = verification.base()
    config.image_size = 112
    config.model_options.update(
        encoder="resnet18", width=256, pooling="gem", grid=4
    )
    config.model_options.encoder_options = ConfigDict({"stem": "small"})
    # Of CosFace and ArcFace, for hundreds of people rather than thousands.
    config.verify.update(scale=20.0, class_margin=0.2)
    verification.set_batches(config, 32, 4)
    stage = dict(loss="multi_similarity", weight_decay=5e-2, ema_decay=0.99)
    if variant == "":
        config.stages = (
            verification.stage(32, 4, learning_rate=1e-3, epochs=60.0, **stage),
        )
    elif variant == "pretrained":
        config.init_from = "imagenet"
        # Its 1,280 channels in 16 cells would learn the people by heart.
        config.model_options.update(encoder="efficientnet_lite0", grid=1)
        config.model_options.encoder_options = ConfigDict(
            {"drop_path_rate": 0.1}
        )
        config.augment.crop_scale = (0.85, 1.0)
        verification.set_batches(config, 16, 4)
        config.stages = (
            verification.stage(
                16,
                4,
                learning_rate=2e-3,
                epochs=20.0,
                param_groups=(common.group(r"^encoder/", rate=0.3),),
                **stage,
            ),
        )
    elif variant == "short":
        config.model_options.update(width=128, pooling="avg")
        # 81 M multiply-adds a picture; the small stem would cost 12 times that.
        config.model_options.encoder_options = ConfigDict(
            {"width": 32, "depths": (1, 1, 2, 1), "stem": "imagenet"}
        )
        config.augment.update(crop_scale=(0.75, 1.0), rotate=8.0)
        config.verify.forgery_weight = 0.3
        verification.set_batches(config, 16, 4)
        config.stages = (
            verification.stage(16, 4, learning_rate=2e-3, epochs=30.0, **stage),
        )
    elif variant == "demo":
        config = verification.for_digit_pairs(config)
        config.model_options.update(encoder="resnet_demo", width=64, grid=1)
        verification.set_batches(config, 7, 8)
        config.stages = (
            verification.stage(7, 8, learning_rate=3e-3, epochs=12.0, **stage),
        )
    else:
        raise ValueError(
            f"variant {variant!r} is not one of pretrained, short, demo"
        )
    return config
