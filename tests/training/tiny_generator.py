"""A generator of a few thousand weights, and what trains it on one batch."""

import numpy as np

from configs import generation
from training.loop import optimizer, param_groups
from training.loop import state as state_lib
from training.loop import step as step_lib
from training.loop.stages import Stage
from training.multihost import sharding
from training.tasks.generate import Generation


def tiny(**options):
    config = generation.for_digits(generation.base())
    config.model = "dit"
    config.model_options.update(width=16, depth=1, heads=2, patch=8)
    config.generate.update(options)
    config.stages = (generation.stage(1e-3, batch_size=8),)
    return config


def trained(config, images, labels, steps):
    """Trains on one batch, step after step: weights and losses."""
    task, mesh = Generation(config, ("dark", "light")), sharding.make_mesh()
    stage = Stage(0, config.stages[0], 0, steps, steps, 1)
    weights = state_lib.init_weights(task.abstract_model, mesh)
    groups = param_groups.assign(weights[0], stage.config)
    train_step = step_lib.make_train_step(
        task.abstract_model,
        task.loss(stage, mesh),
        stage.config,
        optimizer.rate_tables(stage.config, groups, steps, steps),
        mesh,
        seed=0,
        log_every_steps=1,
    )
    batch = sharding.put_batch(
        {
            "image": images,
            "label": labels,
            "weight": np.ones(len(labels), np.float32),
        },
        mesh,
    )
    now, losses = state_lib.start_stage(0, *weights, stage.config, mesh), []
    for _ in range(steps):
        now, measured = train_step(now, batch)
        losses.append(float(measured["loss"]))
    return task, now, losses
