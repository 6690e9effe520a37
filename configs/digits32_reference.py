"""The reference's third ResNet on digits of 32 px, 5.2 M parameters.

Its other networks: `--config.model=digits_densenet22` and so on
(jax_models/digits_reference.py). Layers are the reference's; dropout is .2
everywhere, and the recipe is not the reference's: noise is
cleaned from the untouched picture, folds know set-ups, every epoch augments
anew, and the rate falls to nothing.

Paper: none; .934 in the competition, .942 after cleaning.

    python train.py --config=configs/digits32_reference.py \
        --config.data.root=/data/digits32 --workdir=runs/digits32_reference

Variant: `:short` is 24 epochs, for small machines.
"""

from configs import digits32


def get_config(variant: str = ""):
    """Returns the recipe; `variant` is '' or 'short'."""
    config = digits32.base("digits_resnet3", dropout=0.2)
    return digits32.stages(config, variant, 1e-3, 24)
