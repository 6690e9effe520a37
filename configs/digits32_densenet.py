"""DenseNet-BC (L 100, k 12) on digits of 32 px, .77 M parameters.

Paper: Huang et al., "Densely Connected Convolutional Networks", 2017; 1.76 %
errors on SVHN.

    python train.py --config=configs/digits32_densenet.py \
        --config.data.root=/data/digits32 --workdir=runs/digits32_densenet

Variant: `:short` is 24 epochs, for small machines.
"""

from configs import digits32


def get_config(variant: str = ""):
    """Returns the recipe; `variant` is '' or 'short'."""
    config = digits32.base("densenet_bc_100_12")
    return digits32.stages(config, variant, 3e-3, 24)
