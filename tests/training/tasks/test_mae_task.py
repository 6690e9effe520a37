"""Masked autoencoding as a task: its loss, its evaluation, its refusals."""

import jax
import numpy as np
import pytest
from flax import nnx

from configs import loading
from core.errors import UserError
from jax_models import mae
from training import config as config_lib
from training import data as data_lib
from training.loop import evaluate, stages, state
from training.multihost import sharding
from training.tasks import mae as task_lib
from training.tasks import registry
from training.tasks.statistics import Statistics


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


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_lib.Data(
        small(),
        tmp_path_factory.mktemp("run"),
        sharding.make_mesh(),
        0,
        task_lib.MaskedAutoencoding,
    )


@pytest.fixture(scope="module")
def task(data, tmp_path_factory):
    found = task_lib.MaskedAutoencoding(small())
    measured = data.prepare(tmp_path_factory.mktemp("cache"))
    found.statistics = Statistics.of(data, *measured)
    return found


@pytest.fixture(scope="module")
def weights(task, data):
    return state.init_weights(task.abstract_model, data.mesh)


@pytest.fixture(scope="module")
def stage(data):
    return stages.plan_stages(small(), len(data.train_rows))[0]


@pytest.fixture(scope="module")
def batch(task, data, stage):
    """The first eight rows of the first batch."""
    sampler = task.sampler(data, data.stage_seed(stage))
    with data.train(stage, 0, sampler) as batches:
        return {name: values[:8] for name, values in next(batches).items()}


@pytest.fixture(scope="module")
def loss_of(task, data, stage, weights):
    """(batch, key) -> loss of the first stage, compiled once."""
    loss = task.loss(stage, data.mesh)

    @jax.jit
    def compute(weights, batch, key):
        model = task.abstract_model.merge(*weights)
        model.eval()
        batch = loss.prepare(batch, loss.constants, key)
        return loss.function(model, batch, loss.constants)

    return lambda batch, key=0: float(
        compute(weights, batch, jax.random.key(key))
    )


def test_rows_that_could_not_be_read_count_for_nothing(batch, loss_of):
    batch = {**batch, "weight": np.float32([1, 1, 1, 0, 1, 1, 0, 1])}
    expected = loss_of(batch)
    other = {**batch, "image": batch["image"].copy()}
    other["image"][[3, 6]] = 255
    assert loss_of(other) == expected
    other["image"][0] = 255 - other["image"][0]
    assert loss_of(other) != expected


def test_the_mask_follows_from_the_key(batch, loss_of):
    assert loss_of(batch, 1) == loss_of(batch, 1)
    assert loss_of(batch, 1) != loss_of(batch, 2)


def test_every_evaluation_hides_the_same_and_counts_each_row_once(
    task, data, weights
):
    evaluator = task.evaluator()
    step = evaluate.make_eval_step(
        task.abstract_model, evaluator, task.eval_constants, data.mesh
    )

    def scores():
        return evaluate.evaluate(
            step, evaluator, *weights, data.validation(), data.mesh
        )

    found = scores()
    assert set(found) == set(task.metrics)
    assert scores() == found
    # By hand, row by row, filling left out.
    constants = task.statistics.channels

    @jax.jit
    def errors(weights, images, rows):
        model = task.abstract_model.merge(*weights)
        model.eval()
        images = (images / 255 - constants["mean"]) / constants["std"]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(42), rows)
        hidden = jax.vmap(
            lambda key: mae.random_mask(key, 1, task._units, 0.75)[0]
        )(keys)
        shown = (model(images, hidden), images, hidden)
        return jax.vmap(mae.reconstruction_loss)(
            *jax.tree.map(lambda array: array[:, None], shown)
        )

    total, count = 0.0, 0
    for batch in data.validation():
        images = batch["image"][:, 0].astype(np.float32)
        rows = errors(weights, images, batch["row"])
        real = batch["row"] >= 0
        total += float(rows[real].sum())
        count += real.sum()
    assert count == len(data.val_rows)
    assert found["val_loss"] == pytest.approx(total / count, rel=1e-4)


def test_a_mask_does_not_depend_on_the_batch_around_it(task, data):
    batch = data.validation()[0]
    images, rows = batch["image"][:8, 0], batch["row"][:8]

    @jax.jit
    def mask_of(images, rows):
        constants = task.statistics.channels
        paint = task.evaluator().paint
        return paint(lambda images, mask: images, images, rows, constants)[1]

    whole, part = mask_of(images, rows), mask_of(images[3:5], rows[3:5])
    assert (np.asarray(whole) != np.asarray(whole)[0]).any()
    np.testing.assert_array_equal(part, whole[3:5])


def test_the_encoder_is_the_classifier_without_its_head(task, stage):
    assert not hasattr(nnx.eval_shape(task.build).encoder, "head")
    assert task.describe() == {"hidden": "75% of 2 x 2 units"}
    assert "hidden pixels" in task.describe_stage(stage)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image_size": 80}, "80"),
        ({"model": "tinyvit_7m"}, "tinyvit_7m"),
    ],
)
def test_a_model_that_cannot_be_pretrained_is_refused(fields, words):
    with pytest.raises(UserError, match=words):
        task_lib.MaskedAutoencoding(small(**fields))


def test_a_decoder_whose_heads_do_not_divide_it_is_refused():
    with pytest.raises(UserError, match=r"mae\.decoder_width is 16"):
        registry.check(small(mae_decoder_heads=3))


def test_something_is_hidden_and_something_is_left():
    (message,) = config_lib.problems(small(mae_mask_ratio=1.0))
    assert message == "mae.mask_ratio is 1.0: it must lie between 0 and 1"
