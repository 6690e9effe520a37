"""Checkpoints: latest and best are kept, and come back bit by bit."""

import errno
import os
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Run

from core.errors import UserError
from training.checkpointing import checksums, manager, reader


def open_in(folder, keep_best=1):
    return manager.CheckpointManager(folder / "checkpoints", keep_best)


def save_all(saved, state, scores):
    for step, score in scores.items():
        metrics = None if score is None else {"f1": score, "merit": score}
        saved.save(step, state, {"log_bytes": 10 * step}, metrics)
    saved.wait()


def steps_on_disk(folder):
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir())


def test_a_state_is_restored_bit_exactly(tmp_path):
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


def test_a_subset_can_be_loaded(tmp_path):
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
def test_latest_and_best_are_kept_across_restarts(tmp_path, scores, best, kept):
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


@pytest.fixture(scope="module")
def two_good(tmp_path_factory):
    """Checkpoints 1 (best) and 2 (latest), and the state in both."""
    folder = tmp_path_factory.mktemp("two")
    state = Run().start()
    saved = open_in(folder)
    save_all(saved, state, {1: 0.5, 2: 0.4})
    saved.close()
    return folder, state


def corrupt_file(path, how):
    content = path.read_bytes() or b"\n"
    middle = len(content) // 2
    if how == "delete":
        path.unlink()
    elif how == "truncate":
        path.write_bytes(content[:middle])
    else:
        flipped = bytes([content[middle] ^ 4])
        path.write_bytes(content[:middle] + flipped + content[middle + 1 :])


@pytest.mark.parametrize("how", ["delete", "truncate", "flip"])
def test_whatever_file_is_corrupt_the_state_is_correct_or_refused(
    two_good, tmp_path, how
):
    whole, state = two_good
    expected = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    files = [
        path.relative_to(whole)
        for path in (whole / "checkpoints/2").rglob("*")
        if path.is_file()
    ]
    refused = set()
    for number, name in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        corrupt_file(folder / name, how)
        saved = open_in(folder)
        try:
            step = saved.latest()
            if step == 2:
                assert saved.history(2) == {"log_bytes": 20}
                found = saved.load(2, state)
                for x, y in zip(jax.tree.leaves(found), expected, strict=True):
                    np.testing.assert_array_equal(np.asarray(x), y)
        except reader.CorruptCheckpointError as corrupt:
            assert "checkpoints/2" in str(corrupt)
            saved.quarantine(corrupt)
            refused.add(name)
        else:
            if step == 1:
                refused.add(name)
        if name in refused:
            assert saved.latest() == saved.best() == 1
            assert (folder / "checkpoints-damaged/2").is_dir()
        saved.load(1, state)
        saved.close()
    names = {name.name for name in refused}
    assert "_CHECKPOINT_METADATA" in names
    assert len(refused) >= 4, names  # Some files hold nothing that is read.


def test_one_flipped_bit_in_an_array_is_named(tmp_path, monkeypatch):
    state = Run().start()
    saved = open_in(tmp_path)
    save_all(saved, state, {1: 0.5})
    load = saved._read

    def flipping(step, abstract):
        flat = dict(load(step, abstract))
        words = np.array(flat["params/head/kernel"])
        words.view(np.uint32)[3, 1] ^= 1 << 31
        flat["params/head/kernel"] = jnp.array(words)
        return flat

    monkeypatch.setattr(saved, "_read", flipping)
    with pytest.raises(
        reader.CorruptCheckpointError, match="params/head/kernel has"
    ):
        saved.load(1, state)


def test_without_an_intact_checkpoint_there_is_no_fresh_start(
    two_good, tmp_path
):
    shutil.copytree(two_good[0] / "checkpoints", tmp_path / "checkpoints")
    for step in ("1", "2"):
        corrupt_file(
            tmp_path / f"checkpoints/{step}/_CHECKPOINT_METADATA", "truncate"
        )
    for _ in range(2):  # Also in the next process.
        saved = open_in(tmp_path)
        with pytest.raises(UserError, match=r"every checkpoint in .* damaged"):
            saved.latest()


@pytest.mark.parametrize("how", ["delete", "truncate", "flip"])
def test_a_corrupt_checkpoint_of_another_run_is_skipped_and_not_moved(
    two_good, tmp_path, how
):
    whole, state = two_good
    name = "_CHECKPOINT_METADATA"
    shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    other = reader.CheckpointReader(tmp_path / "checkpoints")
    pinned = other.fingerprint(1)
    corrupt_file(tmp_path / f"checkpoints/2/{name}", how)
    assert other.best() == 1 and other.fingerprint(1) == pinned
    other.load(1, state)
    corrupt_file(tmp_path / f"checkpoints/1/{name}", how)
    assert other.best() is None
    with pytest.raises(
        reader.CorruptCheckpointError, match="checkpoints/1 is damaged"
    ):
        other.load(1, state)
    assert steps_on_disk(tmp_path) == [1, 2]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_state_is_never_saved(tmp_path, value):
    state = Run().start()
    state.params["head"]["kernel"] = (
        state.params["head"]["kernel"].at[0].set(value)
    )
    saved = open_in(tmp_path)
    with pytest.raises(UserError, match="params/head/kernel is not finite"):
        saved.save(1, state, {})
    assert saved.latest() is None


def test_checksums_do_not_depend_on_the_sharding():
    values = np.arange(24, dtype=np.float32).reshape(4, 3, 2) / 7
    whole = jnp.array(values)
    sums, _ = checksums.checksum_arrays({"x": whole})
    # By hand, as eight shards would add it up.
    words = values.view(np.uint32).ravel().astype(np.uint64)
    factors = 2 * np.arange(24, dtype=np.uint64) + 1
    assert sums["x"] == int((words * factors).sum() % 2**32)
    parts = [slice(0, 2), slice(2, 4)]
    by_part = sum(
        int(
            (
                values[part].view(np.uint32).astype(np.uint64)
                * checksums._factors(
                    (part, slice(None), slice(None)), (4, 3, 2)
                )
            ).sum()
        )
        for part in parts
    )
    assert sums["x"] == by_part % 2**32


def test_checksums_are_equal_on_host_and_device():
    generator = np.random.default_rng(0)
    arrays = [
        jnp.float32(-3.5),
        jnp.array(generator.normal(size=(5, 7, 3)), jnp.float32),
        jnp.array(generator.normal(size=(300, 11)), jnp.bfloat16),
        jnp.array(generator.integers(-9, 9, (4, 1)), jnp.int32),
        jnp.array([True, False, True]),
        jnp.array([[1.0, jnp.nan]], jnp.float32),
        jnp.zeros((0, 3), jnp.float32),
    ]
    on_host = checksums._scan_on_host(arrays)
    np.testing.assert_array_equal(checksums._scan_on_device(arrays), on_host)
    assert on_host[:, 1].tolist() == [0, 0, 0, 0, 0, 1, 0]


def test_a_history_changed_during_a_save_is_saved_unchanged(
    tmp_path,
):
    state, history = Run().start(), {"stale": {"evaluations": 0}}
    saved = open_in(tmp_path)
    saved.save(1, state, history, {"f1": 0.5, "merit": 0.5})
    history["stale"]["evaluations"] = 1  # Orbax writes it only at the end.
    # No wait in between: whoever asks gets the whole checkpoint.
    assert saved.latest() == saved.best() == 1
    assert saved.history(1) == {"stale": {"evaluations": 0}}
    assert "params/head/kernel" in saved.contents(1)
    saved.close()
    assert open_in(tmp_path).latest() == 1


def test_repeated_saves_leak_no_files_or_threads(tmp_path):
    state, held = Run().start(), []
    saved = open_in(tmp_path)
    for step in range(1, 7):
        saved.save(step, state, {}, {"merit": 0.1 * step})
        saved.wait()
        files = len(os.listdir("/proc/self/fd"))
        held.append((files, threading.active_count()))
    saved.close()
    assert held[-1][0] <= held[1][0] and held[-1][1] <= held[1][1], held


# Legal names, with what patterns, URLs, shells and JSON take for their own.
NAMES = [
    "a[x]",
    "[!x]*",
    "st*r?",
    "{a,b}~",
    "new\nline",
    "-dash",
    " a b ",
    "100%20#é",
    "x" * 200,
]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_kept_under_any_name(tmp_path, monkeypatch, name):
    state = Run().start()
    # What a pattern made of the name would find instead, or as well.
    open_in(tmp_path / "ax").save(1, state, {})
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    for folder in (tmp_path / name / "run", Path("run [2]"), Path(name)):
        saved = open_in(folder)
        save_all(saved, state, {1: 0.5, 2: 0.7, 3: 0.6})
        saved.close()
        again = open_in(folder)
        assert (again.latest(), again.best(), again.steps()) == (3, 2, [2, 3])
        again.load(3, state)
        assert "params/head/kernel" in again.contents(3)


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff\xfe") / "run"
    with pytest.raises(UserError, match=r"udcff.*is not UTF-8.*rename") as told:
        open_in(folder)
    str(told.value).encode()  # It can be printed.
    assert not folder.exists()


def test_what_was_killed_in_the_middle_is_removed(tmp_path):
    state = Run().start()
    saved = open_in(tmp_path)
    save_all(saved, state, {1: 0.5, 2: 0.4})
    saved.close()
    folder = tmp_path / "checkpoints"
    # Killed while 3 was written, and between the commit of 2 and the cleanup.
    shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp")
    shutil.copytree(folder / "2", folder / "0")
    again = open_in(tmp_path)
    assert again.steps() == [1, 2] and steps_on_disk(tmp_path) == [1, 2]
    again.load(2, state)


def test_an_empty_folder_has_no_latest_and_no_best(tmp_path):
    saved = open_in(tmp_path)
    assert saved.latest() is None
    assert saved.best() is None


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_what_cannot_be_read_now_is_neither_damaged_nor_deleted(
    tmp_path, monkeypatch, code
):
    state = Run().start()
    saved = open_in(tmp_path)
    save_all(saved, state, {1: 0.9, 2: 0.5})
    read_text = Path.read_text

    def fail(path, *arguments):
        if path.parent.name == "1":
            raise OSError(code, os.strerror(code), str(path))
        return read_text(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", fail)
        save_all(saved, state, {3: 0.1})
        assert steps_on_disk(tmp_path) == [1, 2, 3]
        for read in (saved.best, lambda: open_in(tmp_path)):
            with pytest.raises(UserError, match=r"cannot read the") as told:
                read()
            assert not isinstance(told.value, reader.CorruptCheckpointError)
    again = open_in(tmp_path)
    assert (again.best(), again.latest()) == (1, 3)
    assert steps_on_disk(tmp_path) == [1, 3]
    assert not (tmp_path / "checkpoints-damaged").exists()


def test_what_is_damaged_while_the_run_goes_on_is_kept(tmp_path):
    state = Run().start()
    saved = open_in(tmp_path)
    save_all(saved, state, {1: 0.9, 2: 0.5})
    corrupt_file(tmp_path / "checkpoints/1/_CHECKPOINT_METADATA", "truncate")
    save_all(saved, state, {3: 0.1, 4: 0.2})
    assert steps_on_disk(tmp_path) == [1, 2, 4]
    assert open_in(tmp_path).best() == 2
    assert (tmp_path / "checkpoints-damaged/1").exists()
