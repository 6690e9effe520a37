"""Checkpoints: latest and best are kept, and come back bit by bit."""

import jax
import numpy as np
import pytest
from tiny import Run

from training import checkpoints


def open_in(folder, keep_best=1):
    return checkpoints.Checkpoints(folder / "checkpoints", "f1", keep_best)


def save_all(saved, state, scores):
    for step, score in scores.items():
        metrics = None if score is None else {"f1": score, "loss": 0.0}
        saved.save(step, state, {"log_bytes": 10 * step}, metrics)
    saved.wait()


def steps_on_disk(folder):
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir())


def test_a_state_comes_back_bit_by_bit(tmp_path):
    run = Run(ema_decay=0.9, clip_norm=1.0)
    state, _ = run.train(run.start(), 3)
    expected = jax.tree.map(np.asarray, state)
    saved = open_in(tmp_path)
    saved.save(3, state, {"log_bytes": 123, "best": None})
    run.train(state, 2)  # Donates and overwrites the buffers meanwhile.
    saved.close()
    again = open_in(tmp_path)
    assert again.latest() == 3
    assert again.history(3) == {"log_bytes": 123, "best": None}
    loaded = again.load(3, run.start())
    assert jax.tree.structure(loaded) == jax.tree.structure(run.start())
    for x, y in zip(
        jax.tree.leaves(loaded), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(x), y)


def test_a_part_can_be_loaded_alone(tmp_path):
    run = Run()
    state = run.start()
    expected = np.asarray(state.params["head"]["kernel"])
    saved = open_in(tmp_path)
    saved.save(1, state, {})
    part = saved.load(1, {"params": run.start().params})
    np.testing.assert_array_equal(part["params"]["head"]["kernel"], expected)


@pytest.mark.parametrize(
    ("scores", "best", "kept"),
    [
        ({1: 0.1, 2: 0.5, 3: 0.3}, 2, [2, 3]),
        ({1: 0.5, 2: 0.5, 3: 0.5}, 1, [1, 3]),  # The earliest of equals.
        ({1: 0.2, 2: None, 3: None}, 1, [1, 3]),
        ({1: float("nan"), 2: 0.1, 3: 0.0}, 2, [2, 3]),
        ({1: 0.1, 2: 0.2, 3: 0.3}, 3, [3]),
    ],
)
def test_latest_and_best_are_kept_also_over_a_restart(
    tmp_path, scores, best, kept
):
    state = Run().start()
    saved = open_in(tmp_path)
    save_all(saved, state, scores)
    assert (saved.latest(), saved.best()) == (3, best)
    saved.close()
    assert steps_on_disk(tmp_path) == kept
    again = open_in(tmp_path)
    assert (again.latest(), again.best()) == (3, best)
    save_all(again, state, {4: 0.0})  # v0 of Orbax deleted the best here.
    again.close()
    assert steps_on_disk(tmp_path) == sorted({best, 4})


def test_more_than_one_best_can_be_kept(tmp_path):
    saved = open_in(tmp_path, keep_best=2)
    save_all(saved, Run().start(), {1: 0.5, 2: 0.1, 3: 0.4, 4: 0.2})
    saved.close()
    assert steps_on_disk(tmp_path) == [1, 3, 4]


def test_saving_a_step_twice_keeps_the_first(tmp_path):
    run = Run()
    saved = open_in(tmp_path)
    save_all(saved, run.start(), {1: 0.7})
    saved.save(1, run.start(), {"log_bytes": 99})
    saved.wait()
    assert saved.history(1) == {"log_bytes": 10}
    assert saved.best() == 1


def test_an_empty_folder_has_neither(tmp_path):
    saved = open_in(tmp_path)
    assert saved.latest() is None
    assert saved.best() is None
