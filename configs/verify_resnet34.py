"""ResNet-34 by triplets: whether two pictures show one person, both real.

The recipe of a competition on pairs of faces with forgeries, but for its
faults: pooled features of a ResNet-34 (21.3 M parameters) brought to length 1,
semi-hard triplets (Schroff et al., "FaceNet", CVPR 2015, arXiv 1503.03832) of
20 identities with 4 pictures each, margin .2. Forged pictures of a person are
a class of their own, and so negatives of that person; there each was a label
with one picture, and left out.

    python train.py --config=configs/verify_resnet34.py \\
        --config.data.root=/data/faces --workdir=runs/verify_resnet34

What lies where: docs/verification.md. Variants: `:short` is 10 epochs at 64 px
on a ResNet-18 for small machines; `:demo` is pairs of digits, minutes on a
CPU.
"""

from configs import verification


def get_config(variant: str = ""):
    """Returns the recipe; `variant` is '', 'short' or 'demo'."""
    config = verification.base()
    config.model_options.encoder = "resnet34"
    config.model_options.width = 0
    config.verify.update(forgeries="class", miner="semi_hard", margin=0.2)
    verification.set_batches(config, 20, 4)
    stage = dict(loss="triplet", weight_decay=1e-4)
    if variant == "":
        config.image_size = 112
        config.stages = (
            verification.stage(20, 4, learning_rate=5e-4, epochs=60.0, **stage),
        )
    elif variant == "short":
        config.image_size = 64
        config.model_options.encoder = "resnet18"
        config.stages = (
            verification.stage(20, 4, learning_rate=1e-3, epochs=10.0, **stage),
        )
    elif variant == "demo":
        config = verification.for_digit_pairs(config)
        config.model_options.encoder = "resnet_demo"
        verification.set_batches(config, 7, 8)
        config.stages = (
            verification.stage(7, 8, learning_rate=3e-3, epochs=12.0, **stage),
        )
    else:
        raise ValueError(f"variant {variant!r} is not one of short, demo")
    return config
