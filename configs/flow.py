"""Rectified flow: images of a class, from noise, in pixel space.

Papers: Liu et al., "Flow Straight and Fast", 2022; times as in Esser et al.,
"Scaling Rectified Flow Transformers", 2024; augmentation as a condition after
Karras et al., "Elucidating the Design Space", 2022. U-Net of 64 channels.

    python train.py --config=configs/flow.py \\
        --config.data.root=/data/poses --workdir=runs/flow \\
        --config.generate.judge=runs/miniconvnext

The judge, a classifier over the same fold, gives the features of the scores.
A transformer instead of the U-Net: --config.model=dit_small (but for `:demo`,
whose options are the U-Net's).

Variants: `:short` is a network of 32 channels at 32 px, for small machines;
`:demo` are the digits, minutes on a CPU.
"""

from configs import generation


def get_config(variant: str = ""):
    """Returns the recipe; `variant` is '', 'short' or 'demo'."""
    config = generation.base()
    config.model = "flow_unet"
    config.image_size = 64
    if variant == "":
        config.stages = (generation.stage(5e-4, epochs=600.0, batch_size=128),)
    elif variant == "short":
        config.model = "flow_unet_small"
        config.image_size = 32
        # A quarter of the work of single pixels; and few steps, so that more
        # of them are spent where the class is decided.
        config.model_options.patch = 2
        config.generate.time_shift = 1.0
        config.stages = (generation.stage(1e-3, epochs=42.0, batch_size=64),)
        config.eval.every_epochs = 14.0
    elif variant == "demo":
        config = generation.for_digits(config)
        config.model = "flow_unet_small"
        # The digits have 8 x 8 pixels: cells of 4 x 4 here are one each.
        config.model_options.update(
            width=48, multipliers=(1, 2), attention=(1,), patch=4, dropout=0.1
        )
        # Enlarged by 4: what tells classes apart is decided near the noise.
        config.generate.update(steps=15, time_shift=1.5)
        config.stages = (
            generation.stage(
                1.5e-3, epochs=55.0, batch_size=32, ema_decay=0.998
            ),
        )
        config.eval.every_epochs = 11.0
    else:
        raise ValueError(f"variant {variant!r} is not one of short, demo")
    return config
