"""A verification that takes seconds: two stages of six steps, 32 px."""

from ml_collections import ConfigDict

from configs import common, verification


def get_config(variant: str = ""):
    config = verification.base()
    config.model_options.update(
        encoder="miniconvnext_demo", width=16, pooling="gem", dropout=0.2
    )
    config.model_options.encoder_options = ConfigDict({"drop_path_rate": 0.1})
    config.image_size = 32
    config.data.folds = 3
    config.eval.update(every_epochs=0.5, batch_size=16)
    config.log_every_steps = 2
    verification.set_batches(config, 4, 4)
    config.verify.update(memory=32, scale=16.0, class_margin=0.1)
    shared = {"epochs": 2.5, "batch_size": 16, "loss": "cosface+triplet"}
    config.stages = (
        common.one_cycle(3e-3, ema_decay=0.9, **shared),
        common.stage(**shared),
    )
    return config
