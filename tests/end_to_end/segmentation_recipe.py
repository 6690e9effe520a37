"""A segmentation that takes seconds: two stages of six steps, 32 px."""

from configs import common, segmentation


def get_config(variant: str = ""):
    config = segmentation.base()
    config.model = "unet"
    config.model_options.encoder = "miniconvnext_demo"
    config.model_options.channels = (16, 8, 8, 8)
    config.image_size = 32
    config.eval.every_epochs = 2.0
    config.eval.batch_size = 8
    config.log_every_steps = 2
    stage = {"epochs": 4.0, "batch_size": 8, "loss": "cross_entropy+dice"}
    config.stages = (
        common.one_cycle(3e-3, **stage),
        common.stage(**stage),
    )
    return config
