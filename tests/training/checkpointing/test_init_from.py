"""Weights taken from another run are the same after a restart, or refused."""

import json

import numpy as np
import pytest
from tiny import Run

from configs import common, loading
from core.errors import UserError
from run_folder import layout
from training.checkpointing import init_from
from training.checkpointing.manager import CheckpointManager


@pytest.fixture
def teacher(tmp_path):
    """A run folder, and a function that saves a step with a score."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    config = common.base()
    config.stages = (common.stage(),)
    identity = {"classes": [], "folds_hash": "", "rows_hash": ""}
    (folder / "config.json").write_text(json.dumps(loading.plain(config)))
    (folder / "data.json").write_text(json.dumps(identity))
    saved = CheckpointManager(folder / "checkpoints")
    run = Run()

    def save(step, score):
        state = run.start()
        state.params["head"]["bias"] += score
        saved.save(step, state, {}, {"merit": score})
        saved.wait()

    yield folder, save, run
    saved.close()


def open_run(folder, pin=None):
    return init_from.open_run(
        str(folder), folder.parent / "student", 0, "distill_from", pin
    )


def test_a_teacher_that_trains_on_stays_the_one_it_was(teacher):
    folder, save, run = teacher
    save(1, 0.25)
    pin = open_run(folder).pin
    assert json.loads(json.dumps(pin)) == pin
    save(2, 0.125)  # Not better: the first one stays on disk.
    again = open_run(folder, pin)
    params, _ = again.weights(run.abstract_model, run.mesh)
    np.testing.assert_array_equal(params["head"]["bias"], [0.25] * 4)


def test_a_teacher_whose_weights_are_gone_is_refused(teacher):
    folder, save, _ = teacher
    save(1, 0.25)
    pin = open_run(folder).pin
    save(2, 0.5)
    assert open_run(folder).step == 2
    with pytest.raises(UserError, match="learned from its step 1, which is"):
        open_run(folder, pin)


def test_a_teacher_with_other_weights_under_the_step_is_refused(teacher):
    folder, save, _ = teacher
    save(1, 0.25)
    pin = {**open_run(folder).pin, "fingerprint": "0" * 16}
    with pytest.raises(UserError, match="gone or another one"):
        open_run(folder, pin)


@pytest.fixture
def student(teacher):
    """A run that started from the teacher; finds its encoder again."""
    folder, save, run = teacher
    save(1, 0.25)
    workdir = folder.parent / "student"
    workdir.mkdir()
    data = {"classes": [], "folds_hash": "", "rows_hash": ""}
    config = common.base()
    config.init_from = str(folder)

    def find(name=str(folder)):
        config.init_from = name
        return init_from.find_encoder(config, workdir, data, run.abstract_model)

    encoder, pin = find()
    assert encoder.folder == folder
    layout.claim(workdir, loading.plain(config), {**data, **pin}).close()
    (workdir / "checkpoints/1").mkdir(parents=True)

    def resume(name):
        _, found = find(name)
        now = loading.plain(config)
        layout.claim(workdir, now, {**data, **found}).close()

    return folder, save, resume


def test_a_run_goes_on_without_the_one_it_started_from(student):
    folder, _, resume = student
    (folder / "config.json").unlink()
    resume(str(folder))


def test_the_run_it_started_from_may_have_moved(student):
    folder, _, resume = student
    moved = folder.rename(folder.parent / "moved")
    resume(str(moved))


@pytest.mark.parametrize("other", ["trained on", "nothing", "nowhere"])
def test_it_has_not_started_from_another_run(student, other):
    folder, save, resume = student
    name = "" if other == "nothing" else "nowhere"
    if other == "trained on":
        save(2, 0.5)
        name = str(folder.rename(folder.parent / "moved"))
    with pytest.raises(UserError, match="init_from"):
        resume(name)
