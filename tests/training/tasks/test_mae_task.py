"""Masked autoencoding as a task: its loss, its evaluation, its refusals."""

import jax
import numpy as np
import pytest
from flax import nnx

from configs import loading
from core.errors import UserError
from jax_models import mae
from training.loop import stages, state
from training.multihost import sharding
from training.tasks import mae as task_lib


def small(**fields):
    config = loading.load("configs/tinyvit_mae.py:demo")
    config.model = "convnextv2_demo"
    for name, value in fields.items():
        if name.startswith("mae_"):
            config.mae[name.removeprefix("mae_")] = value
        else:
            config[name] = value
    config.mae.decoder_width, config.mae.decoder_mlp_width = 16, 16
    return config


def make(folder, config):
    return task_lib.MaskedAutoencoding(config, folder, sharding.make_mesh(), 0)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    found = make(tmp_path_factory.mktemp("run"), small())
    found.prepare(tmp_path_factory.mktemp("cache"))
    return found


@pytest.fixture(scope="module")
def weights(task):
    return state.init_weights(task.abstract_model, sharding.make_mesh())


def first_batch(task):
    plan = stages.plan_stages(task._config, task.num_train)
    batches = task.batches(plan[0], 0)
    batch = next(batches)
    batches.close()
    return plan[0], batch


@pytest.fixture(scope="module")
def loss_of(task, weights):
    """(batch, key) -> loss of the first stage, compiled once."""
    loss = task.loss(first_batch(task)[0])

    @jax.jit
    def compute(weights, batch, key):
        model = task.abstract_model.merge(*weights)
        model.eval()
        batch = loss.prepare(batch, loss.constants, key)
        return loss.function(model, batch, loss.constants)

    return lambda batch, key=0: float(
        compute(weights, batch, jax.random.key(key))
    )


def test_rows_that_could_not_be_read_count_for_nothing(task, loss_of):
    _, batch = first_batch(task)
    batch = {name: values[:8] for name, values in batch.items()}
    batch["weight"] = np.float32([1, 1, 1, 0, 1, 1, 0, 1])
    expected = loss_of(batch)
    other = {**batch, "image": batch["image"].copy()}
    other["image"][[3, 6]] = 255
    assert loss_of(other) == expected
    other["image"][0] = 255 - other["image"][0]
    assert loss_of(other) != expected


def test_the_mask_follows_from_the_key(task, loss_of):
    _, batch = first_batch(task)
    batch = {name: values[:8] for name, values in batch.items()}
    assert loss_of(batch, 1) == loss_of(batch, 1)
    assert loss_of(batch, 1) != loss_of(batch, 2)


def test_every_evaluation_hides_the_same_and_counts_each_row_once(
    task, weights
):
    scores = task.evaluate(*weights)
    assert set(scores) == {"val_loss"}
    assert task.evaluate(*weights) == scores
    # By hand, row by row, padding left out.
    constants = task._channels

    @jax.jit
    def errors(weights, images, key):
        model = task.abstract_model.merge(*weights)
        model.eval()
        images = (images / 255 - constants["mean"]) / constants["std"]
        hidden = mae.random_mask(key, len(images), task._units, 0.75)
        rows = (model(images, hidden), images, hidden)
        return jax.vmap(mae.reconstruction_loss)(
            *jax.tree.map(lambda array: array[:, None], rows)
        )

    total, count = 0.0, 0
    for number, batch in enumerate(task._feed.validation()):
        key = jax.random.fold_in(jax.random.key(42), number)
        found = errors(weights, batch["image"][:, 0].astype(np.float32), key)
        real = batch["row"] >= 0
        total += float(found[real].sum())
        count += real.sum()
    assert count == len(task.data.val_rows)
    assert scores["val_loss"] == pytest.approx(total / count, rel=1e-4)


def test_the_encoder_is_the_classifier_without_its_head(task):
    assert not hasattr(nnx.eval_shape(task.build).encoder, "head")
    assert "hidden" in task.describe()
    stage, _ = first_batch(task)
    assert "hidden pixels" in task.describe_stage(stage)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mae_mask_ratio": 1.0}, "mask_ratio"),
        ({"mae_decoder_heads": 3}, "decoder_width"),
        ({"image_size": 80}, "80"),
        ({"model": "tinyvit_7m"}, "tinyvit_7m"),
    ],
)
def test_what_cannot_be_pretrained_is_refused(tmp_path, fields, words):
    with pytest.raises(UserError, match=words):
        make(tmp_path, small(**fields))


def test_there_is_one_metric(tmp_path):
    config = small()
    config.checkpoint.metric = "val_macro_f1"
    with pytest.raises(UserError, match="val_loss alone"):
        make(tmp_path, config)
