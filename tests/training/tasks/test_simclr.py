"""Contrastive pretraining: its loss, its views, what it refuses and says."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import loading
from core.errors import UserError
from input_pipeline.samplers import ShuffledSampler, TwoViewSampler
from jax_models.model import HEAD
from metrics import contrastive
from training import data as data_lib
from training.loop import evaluate, stages, state
from training.multihost import sharding
from training.tasks import registry
from training.tasks.simclr import ContrastiveLearning, compare_views
from training.tasks.statistics import Statistics


def projections(photos, width=8, seed=0):
    """Two views of each photo, alike but not equal, and which photo it is."""
    rng = np.random.default_rng(seed)
    centers = np.repeat(rng.normal(size=(photos, width)), 2, axis=0)
    found = centers + 0.5 * rng.normal(size=centers.shape)
    return found.astype(np.float32), np.repeat(np.arange(photos), 2)


def paper(views, temperature):
    """Chen et al. 2020, algorithm 1, view by view."""
    z = np.float64(views)
    count = len(z)

    def similarity(i, j):
        return z[i] @ z[j] / np.linalg.norm(z[i]) / np.linalg.norm(z[j])

    def one(i, j):
        others = [k for k in range(count) if k != i]
        total = sum(math.exp(similarity(i, k) / temperature) for k in others)
        return -math.log(math.exp(similarity(i, j) / temperature) / total)

    # Both directions of each pair.
    pairs = range(0, count, 2)
    return sum(one(k, k + 1) + one(k + 1, k) for k in pairs) / count


COMPARE = jax.jit(compare_views, static_argnums=3)


def loss_of(views, rows, weight=None, temperature=0.5):
    weight = np.ones(len(rows)) if weight is None else weight
    arrays = (views, rows.astype(np.int32), np.float32(weight))
    value, told = COMPARE(*map(jnp.asarray, arrays), temperature)
    return float(value), {name: float(one) for name, one in told.items()}


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_loss_is_that_of_the_paper_in_both_directions(temperature):
    views, rows = projections(7)
    expected = paper(views, temperature)
    found, _ = loss_of(views, rows, temperature=temperature)
    assert found == pytest.approx(expected, rel=1e-5)
    unit = views / np.linalg.norm(views, axis=1, keepdims=True)
    found = contrastive.ntxent(unit.reshape(7, 2, -1), temperature)
    assert found == pytest.approx(expected, rel=1e-6)


def test_by_chance_it_is_the_logarithm_of_all_others():
    same = np.ones((128, 4), np.float32)
    rows = np.repeat(np.arange(64), 2)
    found, told = loss_of(same, rows)
    assert found == pytest.approx(math.log(2 * 64 - 1), rel=1e-6)
    assert told["projection_std"] == pytest.approx(0, abs=1e-6)
    found = contrastive.ntxent(same.reshape(64, 2, 4) / 2, 0.5)
    assert found == pytest.approx(math.log(127), rel=1e-6)


def test_photos_that_could_not_be_read_take_no_part():
    views, rows = projections(6)
    weight = np.ones(12)
    weight[4:6] = 0
    read = weight > 0
    found = loss_of(views, rows, weight)
    assert found[0] == pytest.approx(paper(views[read], 0.5), rel=1e-5)
    assert found[1] == pytest.approx(loss_of(views[read], rows[read])[1])


def test_a_photo_that_came_twice_is_no_negative_of_itself():
    views, rows = projections(4)
    twice = rows.copy()
    twice[rows == 3] = 0
    apart, together = loss_of(views, rows)[0], loss_of(views, twice)[0]
    assert together != apart
    # Two views of one photo alone have nothing to be told from.
    assert loss_of(views[:2], rows[:2])[0] == 0


def test_what_is_logged_tells_spread_from_collapse():
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(512, 16)).astype(np.float32)
    rows = np.repeat(np.arange(256), 2)
    _, told = loss_of(spread, rows)
    assert told["projection_std"] == pytest.approx(1 / 4, rel=0.02)
    assert told["partner_nearest"] < 0.05
    spread[1::2] = spread[::2]
    assert loss_of(spread, rows)[1]["partner_nearest"] == 1


def test_large_folds_are_compared_in_groups_of_like_size():
    views, _ = projections(600, seed=1)
    views /= np.linalg.norm(views, axis=1, keepdims=True)
    views = views.reshape(600, 2, -1)
    found = contrastive.ntxent(views, 0.5)
    parts = [contrastive.ntxent(views[first::3], 0.5) for first in range(3)]
    assert found == pytest.approx(np.mean(parts))
    assert contrastive.ntxent(views[:0], 0.5) == 0


def test_groups_are_mixed_where_images_come_class_by_class():
    classes = np.eye(4, dtype=np.float32).repeat(128, axis=0)
    views = np.stack([classes, classes], axis=1)
    # Of 256 images in a group, a quarter are of one's own class.
    own, other = 2 * 64 - 1, 2 * 192
    expected = math.log(own + other * math.exp(-1 / 0.5))
    assert contrastive.ntxent(views, 0.5) == pytest.approx(expected)


# ---- The task ----------------------------------------------------------------


def small(**fields):
    config = loading.load("configs/tinyvit_simclr.py:demo")
    config.model = "convnextv2_demo"
    config.simclr.update(width=16, outputs=8)
    config.data.folds = 20  # 72 rows to validate.
    config.stages[0].batch_size = 16
    config.eval.batch_size = 16
    for name, value in fields.items():
        config[name] = value
    return config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_lib.Data(
        small(),
        tmp_path_factory.mktemp("run"),
        sharding.make_mesh(),
        0,
        ContrastiveLearning,
    )


@pytest.fixture(scope="module")
def task(data, tmp_path_factory):
    found = ContrastiveLearning(small())
    measured = data.prepare(tmp_path_factory.mktemp("cache"))
    found.statistics = Statistics.of(data, *measured)
    found.attach(data)
    return found


@pytest.fixture(scope="module")
def weights(task, data):
    return state.init_weights(task.abstract_model, data.mesh)


@pytest.fixture(scope="module")
def batch(task, data):
    stage = stages.plan_stages(small(), len(data.train_rows))[0]
    sampler = task.sampler(data, data.stage_seed(stage))
    with data.train(stage, 3, sampler) as batches:
        return next(batches)


def test_every_photo_comes_in_two_views_that_differ(batch):
    rows, images = batch["row"], batch["image"]
    np.testing.assert_array_equal(rows[::2], rows[1::2])
    assert len(set(rows)) == len(rows) // 2
    for one, other in zip(images[::2], images[1::2], strict=True):
        assert (one != other).any()


def test_pairs_follow_the_order_of_the_sampler_below():
    plain = ShuffledSampler(np.arange(10), 3)
    twice = TwoViewSampler(plain)
    found = [twice.row(position) for position in range(40)]
    rows = [plain.row(position) for position in range(20)]
    assert found[::2] == found[1::2] == rows
    # An epoch of views holds half of the photos, and the next the others.
    assert sorted(set(found[:10]) | set(found[10:20])) == list(range(10))


def test_a_gradient_reaches_every_parameter(task, data, batch, weights):
    stage = stages.plan_stages(small(), len(data.train_rows))[0]
    loss = task.loss(stage, data.mesh)
    assert "8 photos in two views each" in task.describe_stage(stage)

    @jax.jit
    def grads(params, batch_stats, batch):
        batch = loss.prepare(batch, loss.constants, jax.random.key(0))

        def value(params):
            model = task.abstract_model.merge(params, batch_stats)
            return loss.function(model, batch, loss.constants)

        return jax.value_and_grad(value, has_aux=True)(params)

    (value, told), found = grads(*weights, batch)
    # Untrained, close to chance.
    assert float(value) == pytest.approx(math.log(15), rel=0.2)
    assert not task.advice(stage, jax.device_get(told))
    leaves = jax.tree_util.tree_flatten_with_path(found)[0]
    assert HEAD not in found and {"encoder", "projector"} == set(found)
    without = [path for path, leaf in leaves if not np.abs(leaf).max() > 0]
    # GRN's scale and shift are zero at first, but not their gradient.
    assert not without


def test_a_collapse_is_told_with_numbers(task):
    stage = stages.plan_stages(small(), 100)[0]
    said = task.advice(stage, {"loss": 2.7, "projection_std": 0.001})
    assert "0.001" in said and "0.35" in said  # 1 / sqrt(8)
    assert "simclr.temperature" in said
    assert not task.advice(stage, {"loss": 2.7, "projection_std": 0.2})
    assert not task.advice(stage, {"loss": 2.7})


def test_every_evaluation_is_the_same_whatever_the_batches(task, data, weights):
    evaluator = task.evaluator()
    step = evaluate.make_eval_step(
        task.abstract_model, evaluator, task.eval_constants, data.mesh
    )

    def scores(batches):
        return evaluate.evaluate(step, evaluator, *weights, batches, data.mesh)

    batches = list(data.validation())
    assert batches[0]["image"].shape == (16, 2, 32, 32, 3)
    assert (batches[0]["image"][:, 0] != batches[0]["image"][:, 1]).any()
    found = scores(batches)
    assert set(found) == set(task.metrics)
    assert scores(batches[::-1]) == found
    transform = task.eval_transform(task.config, data.source, ())
    rows = data.val_rows
    again = list(data.batches(data.source.labelled, rows, transform))
    for one, other in zip(batches, again, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
    # By hand: the projections of all views, without the filling.
    views = np.concatenate([b["image"][b["row"] >= 0] for b in batches])
    assert len(views) == len(rows)

    @jax.jit
    def project(weights, images):
        model = task.abstract_model.merge(*weights)
        model.eval()
        constants = task.statistics.channels
        return model((images / 255 - constants["mean"]) / constants["std"])

    flat = np.array(project(weights, np.float32(views.reshape(-1, 32, 32, 3))))
    expected = loss_of(flat, np.repeat(rows, 2))[0]
    assert found["val_loss"] == pytest.approx(expected, rel=1e-4)


def test_a_photo_that_cannot_be_read_is_left_out_of_the_loss(
    task, data, weights
):
    evaluator = task.evaluator()
    totals = evaluator.init()
    rng = np.random.default_rng(0)
    seen = rng.random(len(totals["seen"])) < 0.5
    views = rng.normal(size=totals["views"].shape).astype(np.float32)
    views /= np.linalg.norm(views, axis=2, keepdims=True)
    found = evaluator.compute({"views": views, "seen": seen})
    assert found["val_loss"] == contrastive.ntxent(views[seen], 0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 15}, "counts views, two of each photo"),
        ({"batch_size": 2}, "from 4 on"),
        ({"accumulate": 2}, "compares all views"),
        ({"mixing": {"prob": 0.5}}, "mixing has no effect"),
    ],
)
def test_stages_that_cannot_be_are_refused(change, words):
    config = small()
    for name, value in change.items():
        config.stages[0][name] = value
    with pytest.raises(UserError, match=words):
        registry.check(config)


def test_the_encoder_is_the_classifier_without_its_head(task):
    model = nnx.eval_shape(task.build)
    assert not hasattr(model.encoder, HEAD)
    assert model.projector.fc1.kernel.shape[1] == 16
    assert model.projector.fc2.kernel.shape == (16, 8)


def test_the_projector_computes_in_float32():
    model = nnx.eval_shape(ContrastiveLearning(small(dtype="bfloat16")).build)
    assert model.projector.fc1.dtype == jnp.float32
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    graphdef, rest = nnx.split(model)
    found = jax.eval_shape(
        lambda rest, images: nnx.merge(graphdef, rest)(images), rest, images
    )
    assert found.dtype == jnp.float32


def test_a_policy_for_the_device_draws_its_views_on_the_host():
    config = small()
    config.augment.device = True
    on, off = (
        ContrastiveLearning.eval_transform(changed, None, ())
        for changed in (config, small())
    )
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    example = {"image": pixels, "id": "one"}
    np.testing.assert_array_equal(on(example)["image"], off(example)["image"])
    assert dataclasses.asdict(on)["policy"]["device"]
    other = on({**example, "id": "two"})["image"]
    assert (other != on(example)["image"]).any()
