"""Masked autoencoding of TinyViT-11M: pretraining without labels, 50 epochs.

Papers: He et al., "Masked Autoencoders Are Scalable Vision Learners", 2022;
Woo et al., "ConvNeXt V2", 2023 (masking a network with a feature pyramid).
Three quarters of each photo are hidden, in units of 32 px, and a four-layer
decoder paints them. Fine-tune with configs/tinyvit_ssl.py.

By arithmetic, not yet measured: 0.05 h for 9,900 photos on one H200, at 160
TFLOP/s and 5,300 images/s.

    python train.py --config=configs/tinyvit_mae.py \
        --config.data.root=/data/poses --workdir=runs/tinyvit_mae

Variants: `:short` for small machines and small photos; `:demo` the digits at
64 px, as one unit alone cannot be hidden in part.
"""

from configs import common, mae


def get_config(variant: str = ""):
    """Returns the recipe; `variant` is '', 'short' or 'demo'."""
    config = common.base("mae", mae=mae.fields())
    config.model = "tinyvit_11m"
    config.model_options.drop_path_rate = (
        0.0  # Hiding is regularisation enough.
    )
    # Painting needs the photo's own colours, and most of it.
    config.augment.update(
        crop_scale=(0.8, 1.0),
        randaugment_ops=0,
        jitter_prob=0.0,
    )
    stage = dict(
        learning_rate=3e-4, end_rate=1e-6, weight_decay=1e-3, clip_norm=1.0
    )
    if variant == "":
        config.stages = (common.stage(epochs=50.0, **stage),)
    elif variant == "short":
        config.model = "tinyvit_demo"
        config.stages = (
            common.stage(epochs=10.0, **{**stage, "learning_rate": 2e-3}),
        )
    elif variant == "demo":
        config = common.for_digits(config)
        config.model = "tinyvit_demo"
        config.image_size = 64
        config.mae.update(
            decoder_width=64,
            decoder_depth=1,
            decoder_heads=4,
            decoder_mlp_width=128,
        )
        config.stages = (
            common.stage(epochs=3.0, **{**stage, "learning_rate": 2e-3}),
        )
    else:
        raise ValueError(f"variant {variant!r} is not one of short, demo")
    # The photo is its own target: nothing is erased or mixed.
    config.mixing.update(prob=0.0, erase_prob=0.0)
    return config
