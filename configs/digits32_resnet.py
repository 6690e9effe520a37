"""ResNet-18 with the small stem on digits of 32 px, 11 M parameters.

Paper: He et al., "Deep Residual Learning for Image Recognition", 2016.

    python train.py --config=configs/digits32_resnet.py \
        --config.data.root=/data/digits32 --workdir=runs/digits32_resnet

Variant: `:short` is 24 epochs at half the width, for small machines.
"""

from configs import digits32


def get_config(variant: str = ""):
    """Returns the recipe; `variant` is '' or 'short'."""
    config = digits32.base("resnet18", stem="small", dropout=0.1)
    if variant == "short":
        config.model_options.width = 32
    return digits32.stages(config, variant, 1e-3, 24)
