"""A recipe of the toy task: importing the task makes it known."""

import toy_task  # noqa: F401

from configs import common
from configs.fields import Field, at_least, declare


def get_config(variant: str = ""):
    fields = declare("mean_colour", width=Field(8, at_least(2)))
    config = common.base("mean_colour", mean_colour=fields)
    config = common.for_digits(config)
    config.mixing.update(prob=0.0, erase_prob=0.0)  # The task mixes nothing.
    config.data.folds = 4
    config.eval.every_epochs = 0.1
    config.eval.tta = ("center",)
    config.log_every_steps = 2
    stage = {"epochs": 0.5, "batch_size": 16}
    config.stages = (
        common.one_cycle(3e-3, **stage),
        common.stage(
            **stage,
            ema_decay=0.9,
            param_groups=(common.group("^conv/", rate=0.5),),
        ),
    )
    return config
