"""Checkpoints in a bucket: committed by a last object, never renamed."""

from http import HTTPStatus

import jax
import numpy as np
import pytest
from tiny import Run

from core.errors import TransientError, UserError
from core.paths import make_path
from training.checkpointing import manager, reader


@pytest.fixture
def folder(url):
    return make_path(url) / "checkpoints"


@pytest.fixture(scope="module")
def state():
    return Run().start()


def save_all(folder, state, scores):
    saved = manager.CheckpointManager(folder)
    for step, score in scores.items():
        saved.save(step, state, {"step": step}, {"merit": score})
    saved.close()
    return saved


def test_latest_and_best_are_kept_and_come_back(folder, state):
    save_all(folder, state, {1: 0.1, 2: 0.5, 3: 0.3, 4: 0.2})
    again = manager.CheckpointManager(folder)
    assert (again.steps(), again.latest(), again.best()) == ([2, 4], 4, 2)
    assert again.history(4) == {"step": 4}
    loaded = again.load(4, state)
    for x, y in zip(*map(jax.tree.leaves, (loaded, state)), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    assert "params/head/kernel" in again.contents(4)
    assert sorted(path.name for path in folder.iterdir()) == ["2", "4"]


def test_what_was_not_committed_is_no_checkpoint(folder, state):
    save_all(folder, state, {1: 0.5, 2: 0.4})
    (folder / "2/commit_success.txt").unlink()  # Killed before, or deleting.
    assert reader.CheckpointReader(folder).steps() == [1]
    (folder / "1-copy/state").write_text("of a user")
    again = manager.CheckpointManager(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "1-copy"]
    again.save(2, state, {}, {"merit": 0.6})  # Under the same name.
    assert (again.latest(), again.best()) == (2, 2)


def test_a_damaged_checkpoint_is_moved_and_the_one_before_used(
    folder, state, bucket
):
    saved = save_all(folder, state, {1: 0.5, 2: 0.4})
    prefix = str(folder).removeprefix(f"{bucket.url}/")
    for name in bucket.names(f"{prefix}/2/state/"):
        if "/d/" in name:
            bucket.write(name, bucket.read(name)[:100])
    with pytest.raises(reader.CorruptCheckpointError) as corrupt:
        saved.load(2, state)
    saved.quarantine(corrupt.value)
    assert (saved.latest(), saved.best()) == (1, 1)
    moved = bucket.names(f"{prefix}-damaged/2/")
    assert any(name.endswith("_CHECKPOINT_METADATA") for name in moved)
    assert not bucket.names(f"{prefix}/2/")


def test_a_damaged_checkpoint_is_copied_before_it_is_deleted(
    folder, state, bucket
):
    saved = save_all(folder, state, {1: 0.5})
    damaged = reader.CorruptCheckpointError(folder, 1, "a flipped bit")
    bucket.fault = lambda method, path: (
        HTTPStatus.FORBIDDEN if "-damaged" in path else None
    )
    with pytest.raises(OSError, match="Forbidden"):
        saved.quarantine(damaged)
    bucket.fault = lambda method, path: None
    assert saved.steps() == [1]
    saved.load(1, state)
    saved.quarantine(damaged)
    for again in (saved, manager.CheckpointManager(folder)):
        with pytest.raises(UserError, match="every checkpoint in gs:"):
            again.latest()


@pytest.mark.parametrize("part", ["_CHECKPOINT_METADATA", "manifest.ocdbt"])
def test_what_cannot_be_read_now_is_not_damaged(folder, state, bucket, part):
    saved = save_all(folder, state, {1: 0.5})
    bucket.fault = lambda method, path: (
        HTTPStatus.FORBIDDEN if f"1/{part}" in path or part in path else None
    )
    with pytest.raises(UserError, match=r"^gs://.* cannot be read") as told:
        saved.load(1, state)
    assert not isinstance(told.value, reader.CorruptCheckpointError)
    assert not isinstance(told.value, TransientError)  # No right to read it.
    bucket.fault = lambda method, path: None
    saved.load(1, state)
