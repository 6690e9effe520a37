"""DeepLabV3+: atrous spatial pyramid pooling and a small decoder.

Paper: Chen et al., "Encoder-Decoder with Atrous Separable Convolution", 2018,
on ResNet-50 (26.7 M parameters at 3 classes).

    python train.py --config=configs/deeplabv3plus.py \\
        --config.data.root=/data/steel --workdir=runs/deeplabv3plus

Masks lie beside the images, see docs/segmentation.md.

Variants: `:short` is 30 epochs on ResNet-18; `:demo` is scenes of digits,
minutes on a CPU.
"""

from configs import segmentation


def get_config(variant: str = ""):
    """Returns the recipe; `variant` is '', 'short' or 'demo'."""
    config = segmentation.base()
    config.model = "deeplabv3plus"
    config.model_options.encoder = "resnet50"
    if variant == "":
        config.image_size = 256
        config.stages = (segmentation.stage(1e-3, epochs=120.0, batch_size=16),)
    elif variant == "short":
        config.image_size = 192
        config.model_options.encoder = "resnet18"
        config.stages = (segmentation.stage(2e-3, epochs=30.0, batch_size=8),)
    elif variant == "demo":
        config = segmentation.for_digit_scenes(config)
        config.model_options.encoder = "resnet18"
        config.stages = (segmentation.stage(3e-3, epochs=12.0, batch_size=8),)
    else:
        raise ValueError(f"variant {variant!r} is not one of short, demo")
    return config
