"""MobileNetV2 with the small stem on digits of 32 px, 2.2 M parameters.

Paper: Sandler et al., "MobileNetV2", 2018.

    python train.py --config=configs/digits32_mobilenetv2.py \
        --config.data.root=/data/digits32 --workdir=runs/digits32_mobilenetv2

Variant: `:short` is 40 epochs, for small machines.
"""

from configs import digits32


def get_config(variant: str = ""):
    """Returns the recipe; `variant` is '' or 'short'."""
    config = digits32.base("mobilenetv2", stem="small")
    return digits32.stages(config, variant, 2e-3, 40)
