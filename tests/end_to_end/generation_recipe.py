"""A generator that takes seconds: two stages of six steps on the digits."""

from configs import generation


def get_config(variant: str = ""):
    config = generation.for_digits(generation.base())
    config.model = "dit"
    config.model_options.update(width=16, depth=1, heads=2, patch=8)
    config.generate.update(steps=2, count=30, chunk=25)
    config.data.folds = 20
    config.eval.update(every_epochs=0.05, batch_size=8)
    config.log_every_steps = 2
    stage = {"epochs": 0.1, "batch_size": 16, "ema_decay": 0.9}
    config.stages = (
        generation.stage(3e-3, **stage),
        generation.stage(1e-3, **stage),
    )
    return config
