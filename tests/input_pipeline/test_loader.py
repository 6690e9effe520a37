from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import types
from multiprocessing import resource_tracker

import numpy as np
import pytest
from sample_images import encoded, photo
from small_disk import limit_file_size

from core.errors import UserError
from input_pipeline import loader
from input_pipeline.samplers import ShuffledSampler
from input_pipeline.sources import open_source
from input_pipeline.sources.base import ArrayExamples, FileExamples
from input_pipeline.transforms.policy import Augment, TrainTransform
from input_pipeline.transforms.views import EvalTransform


@pytest.fixture(scope="module")
def digits():
    data = types.SimpleNamespace(
        root="",
        source="digits",
        submission_id_column="id",
        target_column="target_feature",
        group_column="",
    )
    return open_source(data).labelled


def first_batches(images, count, **options):
    with train_stream(images, **options) as batches:
        return list(itertools.islice(batches, count))


def train_stream(images, **options):
    settings = {"batch_size": 6, "seed": 3} | options
    rows = settings.pop("rows", np.arange(20))
    sampler = ShuffledSampler(rows, settings["seed"])
    transform = TrainTransform(Augment(), 8)
    return loader.train_batches(images, transform, sampler, **settings)


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])


def test_batches_are_what_the_model_takes(digits):
    batch = first_batches(digits, 1)[0]
    assert set(batch) == {"image", "label", "weight", "row"}
    assert batch["image"].shape == (6, 8, 8, 3)
    assert [
        batch[name].dtype for name in ("image", "label", "weight", "row")
    ] == [
        np.uint8,
        np.int32,
        np.float32,
        np.int32,
    ]
    np.testing.assert_array_equal(batch["label"], digits.labels[batch["row"]])
    assert batch["weight"].all()


@pytest.mark.parametrize(
    ("workers", "start"), [(0, 0), (0, 3), (0, 5), (1, 3), (2, 0), (2, 3)]
)
def test_stream_depends_on_seed_and_step_alone(digits, workers, start):
    whole = first_batches(digits, 8)
    rest = first_batches(digits, 8 - start, workers=workers, start_step=start)
    assert_same(whole[start:], rest)


def test_another_seed_is_another_stream(digits):
    one, other = first_batches(digits, 3), first_batches(digits, 3, seed=4)
    assert not np.array_equal(one[0]["row"], other[0]["row"])


def test_every_epoch_is_a_new_permutation(digits):
    rows = np.arange(5, 25)
    batches = first_batches(digits, 10, rows=rows)
    stream = np.concatenate([batch["row"] for batch in batches])
    epochs = stream.reshape(3, 20)  # Batches go over the edge of an epoch.
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), rows)
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])


def test_the_same_image_is_augmented_differently_each_time(digits):
    batches = first_batches(digits, 4, rows=np.array([0]), batch_size=5)
    images = np.concatenate([batch["image"] for batch in batches])
    assert len({image.tobytes() for image in images}) > 15


@pytest.mark.parametrize("rows", [32, 37])
def test_rows_of_all_hosts_put_together_are_the_batch_of_one_host(digits, rows):
    """Also over the edge of an epoch that hosts do not divide."""
    rows = np.arange(rows)
    whole = first_batches(digits, 3, rows=rows)
    size = len(whole[0]["row"])
    for local in (np.arange(0, size, 2), np.arange(size // 2, size)):
        part = first_batches(digits, 3, rows=rows, local_rows=local)
        for own, batch in zip(part, whole, strict=True):
            for name, values in batch.items():
                np.testing.assert_array_equal(own[name], values[local])


def evaluate(images, rows, **options):
    settings = {"batch_size": 6} | options
    transform = EvalTransform(settings.pop("views", ("center",)), 8)
    with loader.eval_batches(images, rows, transform, **settings) as batches:
        return list(batches)


@pytest.mark.parametrize(
    ("count", "workers"), [(1, 0), (6, 0), (13, 0), (13, 2)]
)
def test_evaluation_covers_every_row_exactly_once(digits, count, workers):
    rows = np.arange(100, 100 + count)[::-1]
    views = ("center", "center_flip", "crop")
    batches = evaluate(digits, rows, workers=workers, views=views)
    assert all(b["image"].shape == (6, 3, 8, 8, 3) for b in batches)
    seen = np.concatenate([batch["row"] for batch in batches])
    weight = np.concatenate([batch["weight"] for batch in batches])
    assert len(seen) == -(-count // 6) * 6
    np.testing.assert_array_equal(seen[weight == 1], rows)
    assert (seen[weight == 0] == -1).all()
    labels = np.concatenate([batch["label"] for batch in batches])
    np.testing.assert_array_equal(labels[weight == 1], digits.labels[rows])


def test_evaluation_on_several_hosts_covers_every_row_exactly_once(digits):
    seen = []
    for host in (0, 1, 2):
        local = (2 * host, 2 * host + 1)
        batches = evaluate(digits, np.arange(13), local_rows=local)
        assert len(batches) == 3  # The same number on every host.
        seen += [batch["row"] for batch in batches]
    seen = np.concatenate(seen)
    assert sorted(seen[seen >= 0]) == list(range(13))


def test_evaluation_views_depend_on_the_id_alone(digits):
    order = np.arange(8)
    views = ("crop", "crop_flip")
    one = evaluate(digits, order, views=views, batch_size=8)[0]["image"]
    two = evaluate(digits, order[::-1], views=views, batch_size=4)
    two = np.concatenate([batch["image"] for batch in two])
    np.testing.assert_array_equal(one, two[::-1])
    np.testing.assert_array_equal(one[:, 0], one[:, 1, :, ::-1])


@pytest.fixture
def some_bad(tmp_path):
    """Eight files, of which numbers 2 and 5 cannot be read."""
    names = [f"{row}.jpg" for row in range(8)]
    for row, name in enumerate(names):
        (tmp_path / name).write_bytes(encoded(photo(seed=row)))
    (tmp_path / "2.jpg").write_bytes(b"")
    (tmp_path / "5.jpg").unlink()
    ids = np.array([name[:-4] for name in names])
    labels = np.arange(8, dtype=np.int32) % 3
    return FileExamples(ids, labels, str(tmp_path), names)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_training_images_are_masked_and_told_once(some_bad, capfd, workers):
    batches = first_batches(
        some_bad, 8, rows=np.arange(8), batch_size=4, workers=workers
    )
    for batch in batches:
        bad = np.isin(batch["row"], [2, 5])
        np.testing.assert_array_equal(batch["weight"], ~bad)
        assert not batch["image"][bad].any()
        assert batch["image"][~bad].any(axis=(1, 2, 3)).all()
    lines = [
        line
        for line in capfd.readouterr().err.splitlines()
        if line.startswith("bad image")
    ]
    assert sorted(lines) == [
        f"bad image '{some_bad.path(2)}': the file is empty; left out of "
        "training",
        f"bad image '{some_bad.path(5)}': No such file or directory; left "
        "out of training",
    ]


def test_bad_evaluation_images_keep_their_row(some_bad, capsys):
    batches = evaluate(some_bad, np.arange(8), batch_size=5)
    rows = np.concatenate([batch["row"] for batch in batches])[:8]
    bad = np.concatenate([batch["bad"] for batch in batches])
    weight = np.concatenate([batch["weight"] for batch in batches])
    np.testing.assert_array_equal(rows, np.arange(8))
    np.testing.assert_array_equal(np.flatnonzero(bad), [2, 5])
    np.testing.assert_array_equal(weight, [1] * 8 + [0] * 2)
    assert (
        f"bad image '{some_bad.path(2)}': the file is empty; keeps its row "
        "with the class prior\n"
    ) in capsys.readouterr().err


def test_settings_that_cannot_be(digits):
    with pytest.raises(UserError, match="no image to train on"):
        first_batches(digits, 1, rows=np.array([], int))
    with pytest.raises(ValueError, match="local rows"):
        first_batches(digits, 1, local_rows=(0, 1000))
    with pytest.raises(UserError, match="no evaluation view 'middle'"):
        evaluate(digits, np.arange(3), views=("center", "middle"))


def children():
    """Process ids of all living processes below this one."""
    found = set()
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except (OSError, NotADirectoryError):
            continue
        is_worker = fields[1] == str(os.getpid()) and fields[0] != "Z"
        if is_worker and name.isdigit():
            with open(f"/proc/{name}/cmdline", "rb") as file:
                # multiprocessing's tracker lives as long as its parent.
                if b"resource_tracker" not in file.read():
                    found.add(int(name))
    return found


def wait_for(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.parametrize(("workers", "read"), [(0, 3), (2, 0), (2, 3)])
@pytest.mark.parametrize("how", ["close", "drop"])
def test_closing_leaves_no_process_and_no_thread(digits, workers, read, how):
    before, threads = children(), threading.active_count()
    stream = train_stream(digits, workers=workers)
    for _ in range(read):
        next(stream)
    assert len(children() - before) == (workers if read else 0)
    if how == "close":
        stream.close()
        stream.close()  # Twice does no harm.
        with pytest.raises(StopIteration):
            next(stream)
    else:
        del stream
    assert wait_for(lambda: not children() - before)
    # grain keeps one pool, of four threads, that deletes shared memory.
    assert wait_for(lambda: threading.active_count() <= threads + 4)


def test_workers_hear_no_wish_to_stop(digits):
    """A signal to the whole group must not take the loaders away."""
    own, before = signal.pthread_sigmask(signal.SIG_BLOCK, ()), children()
    with train_stream(digits, workers=2) as batches:
        next(batches)
        workers = children() - before
        assert len(workers) == 2
        for worker in workers:
            with open(f"/proc/{worker}/status") as file:
                status = file.read()
            blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                assert blocked & 1 << (number - 1)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == own


def test_an_evaluation_read_to_its_end_is_closed(digits):
    threads = threading.active_count()
    streams = [
        loader.eval_batches(
            digits, np.arange(9), EvalTransform(("center",), 8), batch_size=4
        )
        for _ in range(5)
    ]
    for stream in streams:
        assert len(list(stream)) == 3
    assert wait_for(lambda: threading.active_count() <= threads)


def test_a_killed_worker_is_an_error_not_a_hang(digits):
    before = children()
    stream = train_stream(digits, workers=2)
    next(stream)
    victim = min(children() - before)
    os.kill(victim, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(loader.WorkerDied, match="workers=1, which"):
        for _ in range(100):
            next(stream)
    assert time.monotonic() - start < 15
    stream.close()
    assert not children() - before


def test_workers_that_cannot_start_are_an_error_with_a_remedy(digits):
    """Their locks are files in /dev/shm, which may be tiny in a container."""
    stream = train_stream(digits, workers=1)
    resource_tracker.ensure_running()
    limit_file_size(0)
    try:
        with pytest.raises(loader.WorkerDied, match=r"start.*workers=0, which"):
            next(stream)
    finally:
        limit_file_size(None)
    stream.close()


class Explosive(ArrayExamples):
    """Stands for a bug of ours inside a worker."""

    def read(self, row):
        raise ZeroDivisionError("a bug")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_in_a_worker_looks_like_a_bug(workers):
    images = Explosive(
        np.array(["a"]), np.zeros(1, np.int32), np.zeros((1, 8, 8, 3), np.uint8)
    )
    with pytest.raises(ZeroDivisionError, match="a bug"):
        first_batches(images, 1, rows=np.array([0]), workers=workers)


SCRIPT = """
import itertools
import numpy as np
from types import SimpleNamespace
from input_pipeline import loader, sources
from input_pipeline.samplers import ShuffledSampler
from input_pipeline.transforms.policy import Augment, TrainTransform

if __name__ == "__main__":
    images = sources.open_source(SimpleNamespace(
        root="", source="", submission_id_column="id", target_column="t",
        group_column="",
    )).labelled
    stream = loader.train_batches(
        images, TrainTransform(Augment(), 32),
        ShuffledSampler(np.arange(99), 0), batch_size=32, seed=0, workers=2)
    batches = list(itertools.islice(stream, 4))
    print(len(batches), flush=True)
    {end}
"""


@pytest.mark.parametrize("end", ["pass", "raise SystemExit(7)"])
def test_a_script_that_ends_without_closing_leaves_nothing(tmp_path, end):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(end=end))
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, path],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert result.stdout == "4\n"
    assert result.returncode == (0 if end == "pass" else 7)
    assert result.stderr == ""
    assert time.monotonic() - start < 40


def test_modules_that_workers_need_import_no_jax():
    """grain itself imports JAX, so the modules beside loader.py count."""
    modules = "decoding, folds, sources, statistics"
    script = f"import sys; from input_pipeline import {modules}; "
    script += "from input_pipeline.transforms import policy, views; " + (
        "sys.exit('jax' in sys.modules or 'grain' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
