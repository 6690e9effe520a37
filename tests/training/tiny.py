"""A tiny model with all that a real one has, and state around it."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs import common
from training.loop import optimizer, param_groups
from training.loop import state as state_lib
from training.loop import step as step_lib
from training.multihost import sharding


class Tiny(nnx.Module):
    """Convolution, BatchNorm, two dropouts and a head: 8x8 images."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.first = nnx.Dropout(0.3, rngs=rngs)
        self.second = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, images):
        x = jax.nn.relu(self.norm(self.conv(images)))
        x = self.second(self.first(x.mean(axis=(1, 2))))
        return self.head(x)


def build() -> Tiny:
    return Tiny(nnx.Rngs(0))


def prepare(batch, constants, key):
    noise = constants["noise"] * jax.random.normal(key, batch["image"].shape)
    return {**batch, "image": batch["image"] + noise}


def loss_fn(model, batch, constants):
    logits = model(batch["image"])
    targets = jax.nn.one_hot(batch["label"], 4)
    return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()


LOSS = step_lib.Loss(loss_fn, {"noise": np.float32(0.01)}, prepare)


def weighted_loss_fn(model, batch, constants):
    targets = jax.nn.one_hot(batch["label"], 4)
    rows = -(targets * jax.nn.log_softmax(model(batch["image"]))).sum(-1)
    weight = batch["weight"]
    return (rows * weight).sum() / jnp.maximum(weight.sum(), 1.0)


WEIGHTED_LOSS = step_lib.Loss(weighted_loss_fn, LOSS.constants, prepare)


class Run:
    """A stage of training of the tiny model."""

    def __init__(
        self,
        ema_decay=0.0,
        log_every_steps=4,
        seed=1,
        mesh=None,
        build=build,
        loss=LOSS,
        **fields,
    ):
        self.mesh = mesh or sharding.make_mesh()
        self.build = build
        self.abstract_model = state_lib.make_abstract_model(build)
        options = {"schedule": "constant", "learning_rate": 1e-2, **fields}
        self.stage = common.stage(
            weight_decay=0.1, ema_decay=ema_decay, **options
        )
        params = state_lib.pure_shapes(self.abstract_model)[0]
        self.groups = param_groups.assign(params, self.stage)
        self.tables = optimizer.rate_tables(self.stage, self.groups, 100, 10)
        self.train_step = step_lib.make_train_step(
            self.abstract_model,
            loss,
            self.stage,
            self.tables,
            self.mesh,
            seed=seed,
            log_every_steps=log_every_steps,
        )

    def start(self, step=0):
        """The state before the first step; donated by `train`."""
        weights = state_lib.init_weights(self.abstract_model, self.mesh)
        return state_lib.start_stage(step, *weights, self.stage, self.mesh)

    def batch(self, step):
        key = jax.random.key(1000 + step)
        images = jax.random.normal(key, (8, 8, 8, 3))
        return {"image": images, "label": jnp.arange(8) % 4}

    def train(self, state, steps):
        for _ in range(steps):
            state, measured = self.train_step(
                state, self.batch(int(state.step))
            )
        return state, measured
