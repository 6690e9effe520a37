"""Three stages with all that a checkpoint must remember; see fork_server."""

from fork_server import DIVERGES

from configs import common


def get_config(variant: str = ""):
    config = common.for_digits(common.base())
    config.data.folds = 2
    config.eval.every_epochs = 0.18
    config.eval.tta = ("center",)
    config.log_every_steps = 2
    frozen = (common.group("^(conv|norm)/", frozen=True),)
    shared = {"batch_size": 16, "schedule": "constant"}
    config.stages = (
        common.stage(
            epochs=0.4,
            learning_rate=3e-3,
            param_groups=frozen,
            ema_decay=0.9,
            **shared,
        ),
        common.stage(
            epochs=1.0,
            learning_rate=1e-12,
            param_groups=frozen,
            patience=2,
            **shared,
        ),
        common.stage(epochs=0.6, learning_rate=DIVERGES, **shared),
    )
    return config
