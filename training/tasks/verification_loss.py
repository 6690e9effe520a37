"""What a verification minimises: metric losses, and the odds of a forgery."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from configs import common
from configs.verification import OWN
from input_pipeline.sources.base import Kind
from input_pipeline.transforms import mixing
from training.loop.step import Loss
from training.tasks import embedding_batch, metric_objective


def name_of(stage: ConfigDict) -> str:
    """Returns the loss of a stage; '' is CosFace."""
    return stage.loss or "cosface"


def options_of(config: ConfigDict) -> dict[str, Any]:
    """Returns the losses' options, but for what each has of its own."""
    return {
        name: config.verify[name]
        for name in metric_objective.OPTIONS
        if config.verify[name] != OWN
    }


def needs_classes(config: ConfigDict) -> bool:
    """Returns whether a stage compares embeddings to weights of classes."""
    return any(
        metric_objective.needs_class_weights(name_of(stage))
        for stage in config.stages
    )


def problems(config: ConfigDict) -> Iterator[str]:
    """Yields a sentence for each field that cannot work."""
    own, options = config.verify, options_of(config)
    size = own.identities * own.pictures
    for index, stage in enumerate(config.stages):
        for problem in metric_objective.problems(name_of(stage), options):
            where = f"stages[{index}]" * problem.startswith("loss")
            yield f"{where or 'verify'}.{problem}"
        if stage.batch_size != size:
            yield (
                f"stages[{index}].batch_size is {stage.batch_size}: it is "
                f"verify.identities x verify.pictures, {size}"
            )
        if stage.accumulate > 1:
            yield (
                f"stages[{index}].accumulate is {stage.accumulate}: the loss "
                "compares all pictures of a batch with each other; leave it "
                "at 1, and set remat to save memory"
            )
        if own.memory and own.memory < stage.batch_size:
            yield (
                f"verify.memory is {own.memory}: it holds no batch of "
                f"{stage.batch_size}; take more, or 0"
            )
        if common.merged(config, stage, "mixing")["prob"]:
            yield (
                "mixing.prob is not 0: a mixed picture shows no single "
                "identity; set it to 0"
            )
    beside = (own.pictures - 1, size - own.pictures)
    ranges = ("hard_positives", "hard_negatives")
    for name, most in zip(ranges, beside, strict=True):
        first = own[name][0]
        if own.miner == "n_hard" and first > most + own.memory:
            yield (
                f"verify.{name} is {tuple(own[name])}, and a picture has "
                f"{most + own.memory} of them at the most: begin lower, or "
                "nothing is trained on"
            )
    losses = dict.fromkeys(map(name_of, config.stages))
    if own.memory and not any(
        metric_objective.looks_at_memory(loss, options) for loss in losses
    ):
        yield (
            f"verify.memory is {own.memory}, and {', '.join(losses)} with "
            f"verify.miner={own.miner} looks at no memory; set it to 0, or "
            f"add a loss over pairs, such as {next(iter(losses))}+supcon"
        )
    for name in ("forgery_head", "memory"):
        if name in config.model_options:
            yield (
                f"model_options.{name} cannot be set: it follows from "
                "config.verify"
            )


def make_loss(
    config: ConfigDict, stage: ConfigDict, count: int, constants: dict
) -> Loss:
    """Returns the sum of the stage's losses, and of the forgery head's.

    Args:
      config: of the run.
      stage: of it.
      count: of all identities.
      constants: `mean` and `std` of the channels; `class_of` and `used`, see
        `classes_of`.
    """
    metric = metric_objective.make_metric_loss(
        name_of(stage), options_of(config)
    )
    mix = mixing.Mixing(**common.merged(config, stage, "mixing"))
    forgery_weight = config.verify.forgery_weight

    def prepare(batch, constants, key: jax.Array) -> dict[str, jax.Array]:
        images = mixing.images_of(batch, constants["mean"], constants["std"])
        images = mixing.erase(
            {"image": images}, {"image": Kind.IMAGE}, mix, key
        )["image"]
        forged = batch["forged"]
        return {
            "image": jax.lax.optimization_barrier(images),
            "label": constants["class_of"][batch["label"] + count * forged],
            "real": 1.0 - forged,
            "weight": batch["weight"],
        }

    def loss(model, batch, constants):
        found, weight = model.embed(batch["image"]), batch["weight"]
        classes = memory = None
        if model.head is not None:
            memory = _recall(model.head.memory)
            if model.head.kernel is not None:
                classes = model.head.weights[constants["used"]]
        value, told = metric(
            found.embedding, batch["label"], weight, classes, memory
        )
        if memory is not None:
            _remember(model.head.memory, memory, found.embedding, batch)
        seen = jnp.maximum(weight.sum(), 1.0)
        told["embedding_norm"] = (found.norm * weight).sum() / seen
        if model.forgery is not None:
            rows = optax.sigmoid_binary_cross_entropy(
                found.real_logit, batch["real"]
            )
            told["forgery_loss"] = (rows * weight).sum() / seen
            value += forgery_weight * told["forgery_loss"]
        return value, jax.lax.stop_gradient(told)

    return Loss(loss, constants, prepare)


def classes_of(
    labels: np.ndarray, forged: np.ndarray, count: int, forgeries: str
) -> tuple[np.ndarray, np.ndarray]:
    """Which class of the loss each identity is, real or forged.

    Args:
      labels: int [N], identities of the training rows.
      forged: int [N], 0 or 1.
      count: of all identities.
      forgeries: as in the config.

    Returns:
      int32 [2 * count] -> class of the loss, -1 for what has none and so
      matches nothing; and int32 [C], which unit vector of the class head
      stands for each. Identities that only validate have none: they would be
      learned as what no picture is like.
    """
    known = labels + count * forged
    if forgeries in ("head", "none"):
        known = labels[forged == 0]
    used = np.unique(known).astype(np.int32)
    class_of = np.full(2 * count, -1, np.int32)
    class_of[used] = np.arange(len(used))
    return class_of, used


def _recall(memory: nnx.Module | None) -> embedding_batch.Memory | None:
    if memory is None:
        return None
    return embedding_batch.Memory(
        memory.embeddings[...],
        memory.labels[...].astype(jnp.int32),
        memory.filled[...] > 0,
        memory.next[...].astype(jnp.int32),
    )


def _remember(module, memory, embeddings, batch) -> None:
    after = embedding_batch.remember(
        memory, embeddings, batch["label"], batch["weight"]
    )
    for name, value in (
        ("embeddings", after.embeddings),
        ("labels", after.labels),
        ("filled", after.filled),
        ("next", after.position),
    ):
        getattr(module, name).set_value(value.astype(jnp.float32))
