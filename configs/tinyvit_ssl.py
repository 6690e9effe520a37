"""TinyViT-11M fine-tuned from its own masked autoencoder, 385 epochs.

Papers: Wu et al., "TinyViT", 2022; He et al., "Masked Autoencoders Are
Scalable Vision Learners", 2022. First a linear probe, 10 epochs in which the
encoder is frozen, then five stages in which the head learns faster than the
encoder at first. Run configs/tinyvit_mae.py before it, into a folder
tinyvit_mae beside this run's, or name its folder with --config.init_from.

By arithmetic, not yet measured: 0.2 h for 9,900 photos on one H200, at 160
TFLOP/s and 5,300 images/s.

    python train.py --config=configs/tinyvit_ssl.py \
        --config.data.root=/data/poses --workdir=runs/tinyvit_ssl

Variants: `:short` for small machines and small photos, `:demo` the digits.
"""

from configs import common


def get_config(variant: str = ""):
    """Returns the recipe; `variant` is '', 'short' or 'demo'."""
    config = common.base()
    config.model = "tinyvit_11m"
    config.init_from = "tinyvit_mae"
    if variant == "":
        config.stages = (
            _probe(epochs=10.0),
            common.one_cycle(
                3e-4,
                weight_decay=1e-3,
                epochs=50.0,
                param_groups=(common.group(common.HEAD, rate=10.0),),
            ),
            _cosine(
                100.0,
                end_rate=1e-6,
                alpha=0.75,
                learning_rate=1e-4,
                param_groups=(common.group(common.HEAD, rate=3.0),),
                weight_decay=1e-3,
            ),
            _cosine(75.0, end_rate=1e-7, alpha=0.5),
            _cosine(75.0, end_rate=1e-7, alpha=0.25),
            _cosine(75.0, end_rate=1e-7, alpha=0.25),
        )
    elif variant == "short":
        config = common.for_short(config)
        config.model = "tinyvit_demo"
        config.stages = (
            _probe(epochs=2.0, learning_rate=3e-3),
            common.one_cycle(
                2e-3,
                epochs=60.0,
                clip_norm=1.0,
                param_groups=(common.group(common.HEAD, rate=2.0),),
            ),
        )
    elif variant == "demo":
        config = common.for_digits(config)
        config.model = "tinyvit_demo"
        config.stages = (
            _probe(epochs=3.0, learning_rate=3e-3),
            common.one_cycle(2e-3, epochs=12.0, clip_norm=1.0),
        )
    else:
        raise ValueError(f"variant {variant!r} is not one of short, demo")
    return config


def _probe(**fields):
    return common.stage(
        **{
            "param_groups": (common.group(common.ENCODER, frozen=True),),
            "learning_rate": 3e-4,
            "end_rate": 1e-6,
            "weight_decay": 1e-3,
            **fields,
        }
    )


def _cosine(epochs: float, end_rate: float, alpha: float, **fields):
    return common.stage(
        epochs=epochs,
        end_rate=end_rate,
        mixing={"mixup_alpha": alpha, "cutmix_alpha": alpha},
        **fields,
    )
