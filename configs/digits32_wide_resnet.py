"""WRN-16-8 on digits of 32 px, 11 M parameters at 10 classes.

Paper: Zagoruyko & Komodakis, "Wide Residual Networks", 2016; without cutout,
1.6 % errors on SVHN.

    python train.py --config=configs/digits32_wide_resnet.py \
        --config.data.root=/data/digits32 --workdir=runs/digits32_wide_resnet

Variant: `:short` is 24 epochs of WRN-16-4, for small machines.
"""

from configs import digits32


def get_config(variant: str = ""):
    """Returns the recipe; `variant` is '' or 'short'."""
    config = digits32.base("wide_resnet_16_8", dropout=0.3)
    if variant == "short":
        config.model = "wide_resnet_16_4"
    return digits32.stages(config, variant, 2e-3, 24)
