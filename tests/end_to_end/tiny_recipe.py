"""A recipe that takes a second: two stages of six steps on the digits."""

from configs import common


def get_config(variant: str = ""):
    config = common.for_digits(common.base())
    config.model = "miniconvnext_demo"
    config.data.folds = 20  # 72 rows to validate.
    config.eval.every_epochs = 0.05
    config.eval.tta = ("center",)
    config.log_every_steps = 2
    stage = {"epochs": 0.1, "batch_size": 16}
    config.stages = (
        common.one_cycle(3e-3, **stage),
        common.stage(**stage),
    )
    return config
