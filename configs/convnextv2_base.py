"""ConvNeXt V2 Base from scratch, 87.7 M parameters at 16 classes.

Paper: Woo et al., "ConvNeXt V2: Co-designing and Scaling ConvNets with
Masked Autoencoders", 2023. The stages are those of
configs/convnextv2_small.py.

By arithmetic, not yet measured: 0.4 h for 9,900 photos on one H200, at 160
TFLOP/s and 5,300 images/s.

    python train.py --config=configs/convnextv2_base.py \
        --config.data.root=/data/poses --workdir=runs/convnextv2_base

Variants: `:short` is a small sibling for small machines and small photos,
`:demo` the digits with another seed than Small's.
"""

from configs import convnextv2_small

MODELS = {
    "": "convnextv2_base",
    "short": "convnextv2_demo",
    "demo": "convnextv2_demo",
}


def get_config(variant: str = ""):
    """Returns the recipe; `variant` is '', 'short' or 'demo'."""
    config = convnextv2_small.get_config(variant)
    config.model = MODELS[variant]
    if variant == "":
        config.model_options.drop_path_rate = 0.3
    if variant == "short":
        config.stages[0].epochs = 60.0
    elif variant == "demo":
        config.seed = 43
    return config
