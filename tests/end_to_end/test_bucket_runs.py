"""train.py with its run folder in a bucket, on an emulator of Google's.

SIGKILL is in test_kill.py, several processes are in test_processes.py.
"""

import random
import threading
from http import HTTPStatus

import gcsfs.retry
import pytest
from in_process import training
from orbax.checkpoint._src.serialization import tensorstore_utils
from PIL import Image
from test_kill import assert_same

import predict
from core.paths import make_path
from run_folder import layout, lease
from stacking.runs import find_runs, read_runs


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run in a plain folder."""
    workdir = tmp_path_factory.mktemp("plain") / "run"
    assert training(workdir) == 0
    return workdir


def test_a_run_in_a_bucket_equals_that_in_a_folder(
    plain, url, bucket, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert training(url) == 0
    assert_same(make_path(url), plain)
    prefix = url.removeprefix(f"{bucket.url}/") + "/"
    names = [name.removeprefix(prefix) for name in bucket.names(prefix)]
    files = (p.relative_to(plain).as_posix() for p in plain.rglob("*"))
    flat = {name for name in files if "checkpoints/" not in name}
    flat -= {layout.LOCK, layout.CHECKPOINTS, "logits"}
    assert flat == {n for n in names if "checkpoints/" not in n}
    assert not list(tmp_path.iterdir()), "nothing is kept on the machine"
    assert training(url) == 0
    assert "this run is finished" in capsys.readouterr().out

    # Whoever reads run folders reads this one.
    (found,) = read_runs(find_runs([url.replace("/run", "/r*")]), ("val",))
    assert len(found.val) == 72 and str(found.path) == url
    Image.new("RGB", (32, 32)).save("photo.png")
    assert predict.main(["--run", url, "photo.png", "--format", "csv"]) == 0
    assert "photo.png" in capsys.readouterr().out


@pytest.mark.slow
def test_a_pupil_in_a_bucket_finds_its_teacher_beside_it(url, capsys):
    assert training(url) == 0
    taught = ("--config.stages[0].distill_from=run", "--config.init_from=run")
    assert training(url.replace("/run", "/pupil"), *taught) == 0
    assert f"starts from the encoder in {url}" in capsys.readouterr().out


@pytest.mark.slow
def test_an_unreachable_bucket_damages_no_checkpoint(url, bucket, capsys):
    """Whatever answers that a file cannot be read now, it is not damaged."""
    assert training(url) == 0

    def refuse(method, path):
        reading = method == "GET" and "checkpoints/16/_CHECK" in path
        return HTTPStatus.FORBIDDEN if reading else None

    capsys.readouterr()
    bucket.fault = refuse
    assert training(url) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: gs://") and "Forbidden" in message
    bucket.fault = lambda method, path: None
    assert not (make_path(url).parent / "run/checkpoints-damaged").exists()
    assert training(url) == 0


def test_a_second_run_is_refused_and_a_plan_writes_nothing_else(
    url, bucket, capsys, monkeypatch
):
    assert training(url, "--plan") == 0
    assert (make_path(url) / layout.PLAN).exists()
    assert len(bucket.names(url.removeprefix(f"{bucket.url}/"))) == 1
    assert training("gs://no-such-bucket-anywhere/run") == 2
    assert "cannot be read or written" in capsys.readouterr().err
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 0.4)
    monkeypatch.setattr(lease, "RENEWAL_SECONDS", 0.05)
    with lease.Lease(make_path(url) / layout.LEASE, pytest.fail):
        assert training(url) == 2
    assert "is training in gs://" in capsys.readouterr().err
    assert not layout.has_checkpoint(make_path(url))


@pytest.fixture
def impatient(monkeypatch):
    """Drivers that give up after two attempts, not after minutes."""
    waiting = {"max_retries": 2, "initial_delay": "10ms"}
    for name in ("_BASE_TS_CONTEXT", "_DEFAULT_OCDBT_TS_CONTEXT"):
        patient = getattr(tensorstore_utils, name)
        context = {**patient, "gcs_request_retries": waiting}
        monkeypatch.setattr(tensorstore_utils, name, context)
    # Between its attempts gcsfs sleeps min(2**n, 32) seconds.
    monkeypatch.setattr(gcsfs.retry, "min", lambda *_: 0.01, raising=False)
    # The lease can neither be deleted nor renewed.
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 0.4)


@pytest.mark.slow
def test_a_bucket_that_is_gone_for_good_while_a_checkpoint_is_written(
    plain, url, bucket, impatient, capfd
):
    gone = []

    def fault(method, path):
        if method != "GET" and "checkpoints/8/" in path and "/d/" in path:
            gone.append(path)
        return HTTPStatus.SERVICE_UNAVAILABLE if gone else None

    bucket.fault = fault
    assert training(url) == 75
    # As the end of a process does: what still wants to write the checkpoint
    # would find the bucket again, and the next training a checkpoint.
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            threading.Thread.join(thread, 60)  # Of Orbax, it raises.
    said = capfd.readouterr().err
    assert "Traceback" not in said
    message = said.splitlines()[-1]
    assert message.startswith(f"error: {url} cannot be read or written")
    assert "Unavailable" in message and "run the same command again" in message
    bucket.fault = lambda method, path: None
    assert training(url) == 0
    assert_same(make_path(url), plain)


@pytest.mark.slow
def test_slow_answers_and_failures_change_nothing(plain, url, bucket):
    """One answer of twelve is a 503 or a 429, the others are late."""
    generator = random.Random(0)

    def fault(method, path):
        if generator.random() < 1 / 12:
            return generator.choice(
                (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS)
            )
        return generator.uniform(0, 0.05)

    bucket.fault = fault
    assert training(url) == 0
    bucket.fault = lambda method, path: None
    assert_same(make_path(url), plain)
