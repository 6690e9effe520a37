"""SimCLR of TinyViT-11M: pretraining without labels, 200 epochs.

Paper: Chen et al., "A Simple Framework for Contrastive Learning of Visual
Representations", ICML 2020, arXiv 2002.05709. Two augmented views of each
photo shall lie together, and apart from all others in the batch. Fine-tune
with configs/tinyvit_ssl.py and --config.init_from=tinyvit_simclr; at its end
a linear probe and kNN say what the frozen encoder knows of the classes.

`batch_size` counts views, of 128 photos here, and so does an epoch: in two of
them every photo comes in both of its views. Larger batches have more
negatives, and learn more.

By arithmetic, not yet measured: 0.2 h for 9,900 photos on one H200, at 160
TFLOP/s and 5,300 images/s.

    python train.py --config=configs/tinyvit_simclr.py \
        --config.data.root=/data/poses --workdir=runs/tinyvit_simclr

Variants: `:short` for small machines and small photos, `:demo` the digits.
"""

from configs import common, simclr


def get_config(variant: str = ""):
    """Returns the recipe; `variant` is '', 'short' or 'demo'."""
    config = common.base("simclr", simclr=simclr.fields())
    config.model = "tinyvit_11m"
    config.model_options.drop_path_rate = 0.0  # Two views differ enough.
    simclr.augment(config)
    if variant == "":
        config.stages = (_stage(epochs=200.0, batch_size=256),)
    elif variant == "short":
        config.model = "tinyvit_demo"
        simclr.augment(config, strength=0.5)
        # As the paper's for CIFAR-10: no blur where there is little detail.
        config.augment.update(crop_scale=(0.2, 1.0), blur=0.0)
        config.stages = (_stage(epochs=60.0, batch_size=128),)
    elif variant == "demo":
        config = common.for_digits(config)
        simclr.augment(config, strength=0.5)
        config.model = "tinyvit_demo"
        config.simclr.update(width=64, outputs=32)
        # A digit in half is another one, and so is its mirror image.
        config.augment.update(
            crop_scale=(0.4, 1.0), flip=0.0, blur=0.0, rotate=15.0
        )
        config.stages = (_stage(epochs=24.0, batch_size=128),)
    else:
        raise ValueError(f"variant {variant!r} is not one of short, demo")
    return config


def _stage(**fields):
    return common.stage(
        schedule="warmup_cosine",
        learning_rate=1e-3,
        end_rate=1e-5,
        weight_decay=1e-2,
        clip_norm=1.0,
        **fields,
    )
