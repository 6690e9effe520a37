"""MiniConvNeXt: ConvNeXt V1-style blocks, 2-2-2, 1.6 M parameters.

Paper: Liu et al., "A ConvNet for the 2020s", 2022 (blocks; the size is the
reference solution's own). 350 epochs in five stages, from strong one-cycle
training with mostly CutMix down to a low rate on large batches.

By arithmetic, not yet measured: 0.2 h for 9,900 photos on one H200, at 160
TFLOP/s and 5,300 images/s.

    python train.py --config=configs/miniconvnext.py \
        --config.data.root=/data/poses --workdir=runs/miniconvnext

Variants: `:short` is one one-cycle stage of 40 epochs with the plain
augmentation, for small machines and small photos; `:demo` the digits in a
minute.
"""

from configs import common


def get_config(variant: str = ""):
    """Returns the recipe; `variant` is '', 'short' or 'demo'."""
    config = common.base()
    config.model = "miniconvnext"
    if variant == "":
        config.augment.update(
            flip=0.7,
            jitter=(0.4, 0.4, 0.4, 0.2),
            jitter_prob=0.5,
            grayscale=0.2,
        )
        config.mixing.erase_prob = 0.5
        config.stages = (
            common.stage(
                epochs=75.0,
                schedule="one_cycle",
                start_factor=1 / 25,
                end_rate=3e-4 / 25 / 1e4,
                mixing={"mixup_prob": 0.3},
            ),
            common.stage(epochs=75.0),
            common.stage(epochs=100.0, schedule="warm_restarts"),
            common.stage(epochs=50.0, batch_size=128, end_rate=1e-5),
            common.stage(
                epochs=50.0,
                batch_size=256,
                end_rate=1e-6,
                mixing={"mixup_prob": 0.2},
            ),
        )
    elif variant == "short":
        config = common.for_short(config)
        config.stages = (
            common.one_cycle(1e-3, epochs=40.0, mixing={"mixup_prob": 0.3}),
        )
    elif variant == "demo":
        config = common.for_digits(config)
        config.model = "miniconvnext_demo"
        config.mixing.mixup_prob = 0.8
        config.stages = (
            common.one_cycle(4e-3, epochs=18.0),
            common.stage(epochs=6.0, learning_rate=3e-4, end_rate=1e-6),
        )
    else:
        raise ValueError(f"variant {variant!r} is not one of short, demo")
    return config
