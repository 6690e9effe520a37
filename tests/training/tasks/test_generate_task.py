"""The generate task: its loss, its ranking, its files, on several devices."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_generator import tiny, trained

from configs import flow, generation
from core.errors import UserError
from run_folder import identity
from training.loop.stages import Stage
from training.multihost import sharding
from training.tasks import generation_export, pca_gaussian
from training.tasks.generate import Generation, grid
from training.tasks.judge import Opinion

ROOT = Path(__file__).resolve().parents[3]


def loss_of(task):
    stage = Stage(0, task.config.stages[0], 0, 10, 5, 5)
    loss = task.loss(stage, sharding.make_mesh())
    return loss._replace(prepare=jax.jit(loss.prepare))


class Zero:
    """A network that says that nothing moves."""

    def __call__(self, noisy, time, label, augmentation):
        return jnp.zeros_like(noisy)


def test_the_loss_of_no_velocity_is_the_energy_of_its_target():
    """E|noise - image|² = 1 + image²."""
    loss = loss_of(Generation(tiny(augment=0.0), ("a", "b")))
    batch = {
        "image": jnp.full((4096, 8, 8, 3), 255, jnp.uint8),  # 1.0
        "label": jnp.zeros(4096, jnp.int32),
        "weight": jnp.ones(4096),
    }
    prepared = loss.prepare(batch, {}, jax.random.key(0))
    value = loss.function(Zero(), prepared, {})
    assert float(value) == pytest.approx(2.0, abs=0.02)
    # The line between image and noise, at the given time; just before the end
    # the velocity is shortened.
    early = prepared["time"] > 0.05
    noise = prepared["velocity"][early] + 1.0
    time = prepared["time"][early, None, None, None]
    np.testing.assert_allclose(
        prepared["noisy"][early], (1 - time) + time * noise, atol=1e-5
    )
    # Half of the logit-normal times lie between sigmoid(+-0.674); of uniform
    # ones it would be a third.
    inside = (prepared["time"] > 0.338) & (prepared["time"] < 0.662)
    assert float(inside.mean()) == pytest.approx(0.5, abs=0.03)
    # The same draws, moved towards the noise.
    later = loss_of(Generation(tiny(augment=0.0, time_shift=1.5), ("a", "b")))
    moved = later.prepare(batch, {}, jax.random.key(0))["time"]
    logits = [np.log(t / (1 - t)) for t in (prepared["time"], moved)]
    np.testing.assert_allclose(logits[1], logits[0] + 1.5, atol=1e-3)


def test_labels_are_dropped_as_often_as_asked_and_bad_rows_count_nothing():
    loss = loss_of(Generation(tiny(label_drop=0.25), ("a", "b")))
    batch = {
        "image": jnp.zeros((400, 32, 32, 3), jnp.uint8),
        "label": jnp.arange(400, dtype=jnp.int32) % 2,
        "weight": jnp.ones(400),
    }
    prepared = loss.prepare(batch, {}, jax.random.key(1))
    dropped = prepared["label"] == 2
    assert 0.17 < float(dropped.mean()) < 0.33
    kept = np.asarray(~dropped)
    np.testing.assert_array_equal(prepared["label"][kept], batch["label"][kept])
    small = jax.tree.map(lambda x: x[:2], prepared)
    one = loss.function(Zero(), jax.tree.map(lambda x: x[:1], small), {})
    small["weight"] = jnp.array([1.0, 0.0])
    assert float(loss.function(Zero(), small, {})) == pytest.approx(float(one))


def test_the_last_checkpoint_counts():
    task = Generation(tiny(), ("a", "b"))
    assert task.merit({"val_loss": 9.0}, 20) > task.merit({"val_loss": 1.0}, 10)


def test_recipes_make_networks_of_their_size():
    for variant in ("", "short", "demo"):
        config = flow.get_config(variant)
        assert list(Generation.problems(config)) == []
        Generation(config, tuple("0123456789"))


def test_images_are_made_in_the_shares_of_the_classes():
    labels = np.repeat([0, 1, 3], [50, 30, 20])
    found, indices = generation_export.wanted(labels, 0)
    np.testing.assert_array_equal(found, labels)
    np.testing.assert_array_equal(indices[:50], np.arange(50))
    found, _ = generation_export.wanted(labels, 7)
    assert np.bincount(found).tolist() == [4, 2, 0, 1]


def test_too_few_images_to_score_are_refused():
    for count, told in ((0, 0), (5, 1), (6, 0)):
        config = tiny(count=count, judge="runs/judge")
        assert len(list(Generation.problems(config))) == told
    assert "generate.count is 5" in next(
        Generation.problems(tiny(count=5, judge="runs/judge"))
    )
    assert list(Generation.problems(tiny(count=1))) == []


@pytest.mark.parametrize("judge", ["", "runs/judge"])
def test_photos_too_few_to_score_are_told_before_the_training(judge):
    data = SimpleNamespace(
        train_rows=np.arange(11), halves=lambda rows: np.arange(len(rows)) % 2
    )
    task = Generation(tiny(judge=judge), ("a", "b"))
    if judge:
        with pytest.raises(UserError, match="of the 11 training images"):
            task.attach(data)
        data.train_rows = np.arange(12)
    assert task.attach(data) == {}


def test_fields_of_a_stage_that_do_nothing_are_refused():
    config = tiny()
    for field, value in (("patience", 3), ("layer_decay", 0.9)):
        config.stages = (generation.stage(1e-3, **{field: value}),)
        (told,) = Generation.problems(config)
        assert told.startswith(f"stages[0].{field} has no effect on the")


def test_weights_of_another_run_are_refused_by_the_name_of_their_field():
    for field, value in (("init_from", "runs/x"), ("init_names", ("a -> b",))):
        config = tiny()
        config[field] = value
        (told,) = Generation.problems(config)
        assert told.startswith(f"{field} has no effect on the generate task")


def test_the_plan_says_whether_times_are_shifted():
    for shift, told in ((0.0, ""), (-0.5, ", times shifted by -0.5")):
        task = Generation(tiny(time_shift=shift), ("a", "b"))
        stage = Stage(0, task.config.stages[0], 0, 10, 5, 5)
        assert task.describe_stage(stage).endswith(f"without a class{told}")


def test_what_training_reads_is_part_of_a_run_and_the_rest_is_not():
    """As docs/generation.md says: all but the first four rows may change."""
    page = (ROOT / "docs/generation.md").read_text("utf-8")
    rows = re.findall(r"^\| (`generate\..*?) \|", page, re.MULTILINE)
    told = [re.findall(r"`generate\.(\w+)`", row) for row in rows]
    trained = {"augment", "flip", "label_drop", "time_shift"}
    assert {name for row in told[:4] for name in row} == trained
    free = {name for row in told[4:] for name in row}
    assert free | trained | {"chunk"} == set(generation.generate().keys())
    assert {f"generate.{name}" for name in free} < identity.EXPORT_FIELDS
    earlier = {"generate": generation.generate().to_dict()}
    now = {"generate": {**earlier["generate"], "time_shift": 1.0, "steps": 3}}
    assert identity.differences(now, earlier) == [
        "generate.time_shift: 0.0 -> 1.0"
    ]


def test_guidance_needs_a_network_that_knows_no_class_too():
    (told,) = Generation.problems(tiny(guidance=1.5, label_drop=0.0))
    assert told.startswith("generate.guidance is 1.5 and generate.label_drop 0")
    assert list(Generation.problems(tiny(label_drop=0.0))) == []


def test_a_transformer_learns_what_a_class_looks_like():
    # A picture without detail shows what it is until it is nearly all noise.
    config = tiny(flip=0.0, steps=5, sampler="euler", chunk=6, time_shift=2.0)
    config.model_options.update(width=32, patch=16)
    config.stages = (generation.stage(1e-2, batch_size=16, ema_decay=0.9),)
    labels = np.arange(16, dtype=np.int32) % 2
    rng = np.random.default_rng(0)
    images = np.where(labels[:, None, None, None], 190, 60)
    images = images + rng.integers(-20, 21, (16, 32, 32, 3))
    task, now, losses = trained(config, images.astype(np.uint8), labels, 150)
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:5])
    sample = task.sampler_on(sharding.make_mesh())
    made = np.stack(list(sample(*now.weights, labels[:6], np.arange(6))))
    assert made.dtype == np.uint8 and made.shape == (6, 32, 32, 3)
    means = made.mean((1, 2, 3)).reshape(3, 2)
    np.testing.assert_allclose(means, [[60, 190]] * 3, atol=40)


def test_a_judge_that_takes_no_image_is_told():
    class Doubts:
        def look(self, images, mesh):
            count = len(images)
            return Opinion(np.zeros((count, 1)), np.full((count, 2), 0.5))

    data = SimpleNamespace(
        source=SimpleNamespace(
            labelled=SimpleNamespace(labels=np.array([0, 1])),
            classes=("a", "b"),
        ),
        train_rows=np.arange(2),
        mesh=None,
    )
    config = tiny(count=6, judge="runs/judge", filter=0.9)
    with pytest.raises(UserError, match=r"takes 0 of 30 images .*filter lower"):
        generation_export.export_samples(
            config,
            data,
            None,
            lambda labels, _: np.zeros((len(labels), 2, 2, 3), np.uint8),
            Doubts(),
        )


def test_folders_have_names_that_a_disk_takes():
    assert generation_export.folder_names(("0", "rare one")) == [
        "0",
        "rare one",
    ]
    taken = ("Manifest.json", "b")  # Of the file beside the folders.
    for odd in (("a/b", "c"), ("..", "c"), ("A", "a"), ("", "b"), taken):
        names = generation_export.folder_names(odd)
        assert names == ["class-0", "class-1"]


@pytest.mark.parametrize("largest", [300, 2000])
def test_the_gaussian_has_the_moments_of_its_class(monkeypatch, largest):
    monkeypatch.setattr(pca_gaussian, "LARGEST_FIT", largest)
    rng = np.random.default_rng(0)
    base = rng.normal(size=(2, 48)) * 20 + 128
    labels = np.repeat([0, 1], 400)
    flat = base[labels] + rng.normal(size=(800, 1)) * rng.normal(size=48) * 8
    images = np.clip(flat, 0, 255).astype(np.uint8).reshape(800, 4, 4, 3)
    made = pca_gaussian.sample(images, labels, np.repeat([0, 1], 500), seed=1)
    for label in (0, 1):
        real, drawn = images[labels == label], made[label * 500 :][:500]
        np.testing.assert_allclose(drawn.mean(0), real.mean(0), atol=4)
        np.testing.assert_allclose(drawn.std(0), real.std(0), atol=4)


def test_a_grid_is_rows_of_images():
    images = np.arange(6, dtype=np.uint8)[:, None, None, None]
    picture = grid(np.broadcast_to(images, (6, 2, 2, 3)), columns=3)
    assert picture.shape == (4, 6, 3)
    assert picture[0, ::2, 0].tolist() == [0, 1, 2]
    assert picture[2, ::2, 0].tolist() == [3, 4, 5]


# Prints what the same images and the same steps are on 1 and 4 devices.
DEVICES = """
import json, sys
import jax, numpy as np
from configs import generation
from run_folder import identity
from training.loop import optimizer, param_groups
from training.loop import state as state_lib, step as step_lib
from training.loop.stages import Stage
from training.multihost import sharding
from training.tasks.flow_sampling import Sampling, make_sampler
from training.tasks.generate import Generation

config = generation.for_digits(generation.base())
config.model = "dit"
config.model_options.update(width=16, depth=1, heads=2, patch=8)
config.stages = (generation.stage(1e-2, batch_size=8, ema_decay=0.9),)
task = Generation(config, ("a", "b"))
rng = np.random.default_rng(0)
batch = {
    "image": rng.integers(0, 256, (8, 32, 32, 3)).astype(np.uint8),
    "label": np.arange(8, dtype=np.int32) % 2,
    "weight": np.ones(8, np.float32),
}
stage = Stage(0, config.stages[0], 0, 10, 5, 5)
params = state_lib.pure_shapes(task.abstract_model)[0]
groups = param_groups.assign(params, stage.config)
tables = optimizer.rate_tables(stage.config, groups, 10, 5)
found = {}
for count in (1, 4):
    mesh = sharding.make_mesh(devices=jax.devices()[:count])
    step = step_lib.make_train_step(
        task.abstract_model, task.loss(stage, mesh), stage.config, tables,
        mesh, seed=1, log_every_steps=1,
    )
    weights = state_lib.init_weights(task.abstract_model, mesh)
    state = state_lib.start_stage(0, *weights, stage.config, mesh)
    losses = []
    for _ in range(3):
        state, measured = step(state, sharding.put_batch(batch, mesh))
        losses.append(float(measured["loss"]))
    weights = state_lib.init_weights(task.abstract_model, mesh)
    draw = np.random.default_rng(1).normal  # The same for all meshes.
    loud = jax.tree.map(
        lambda x: draw(0, 0.1, x.shape).astype(np.float32), weights[0]
    )
    loud = sharding.put_constants(loud, mesh)
    sample = make_sampler(
        task.abstract_model, Sampling("heun", 2, 1.5, 3, 4), 32, mesh
    )
    labels, indices = np.arange(9) % 2, np.arange(9)
    images = np.stack(list(sample(loud, weights[1], labels, indices)))
    few = sample(loud, weights[1], labels[[7, 2]], indices[[7, 2]])
    few = np.stack(list(few))
    found[count] = {
        "losses": losses,
        "images": images.tobytes().hex(),
        "alone": bool((few == images[[7, 2]]).all()),
        "differ": float((images[0] != images[2]).mean()),
    }
print(json.dumps(found))
"""


@pytest.mark.slow  # Six compilations.
def test_devices_and_company_change_no_image_and_no_step():
    flags = (
        "--xla_force_host_platform_device_count=4 "
        "--xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true"
    )
    process = subprocess.run(
        [sys.executable, "-c", DEVICES],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout.splitlines()[-1])
    assert found["4"]["images"] == found["1"]["images"]
    np.testing.assert_allclose(
        found["4"]["losses"], found["1"]["losses"], rtol=1e-5
    )
    assert all(part["alone"] for part in found.values())
    assert found["1"]["differ"] > 0.5
