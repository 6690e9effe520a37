"""One writer at a time in a bucket, whatever happens to the others."""

import json
import threading
import time
from http import HTTPStatus

import pytest

from core.errors import UserError
from core.paths import make_path
from run_folder import layout, lease


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 0.4)
    monkeypatch.setattr(lease, "RENEWAL_SECONDS", 0.05)


@pytest.fixture
def folder(url):
    return make_path(url)


def hold(folder, lost=None):
    lost = [] if lost is None else lost
    return lease.Lease(folder / "owner.json", lost.append)


def wait_for(condition, seconds=10):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_second_run_is_refused_until_the_first_has_ended(folder, capsys):
    with hold(folder):
        with pytest.raises(UserError, match=r"a run on .* is training in gs:"):
            hold(folder)
        assert "watching for" in capsys.readouterr().out
    with hold(folder):  # Released: no need to wait.
        assert not capsys.readouterr().out
    assert not (folder / "owner.json").exists()


def test_of_two_that_start_together_one_gets_it(folder):
    held, refused = [], []
    start = threading.Barrier(4)

    def begin():
        start.wait()
        try:
            held.append(hold(folder))
        except UserError as error:
            refused.append(error)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 3)
    held[0].close()


def test_what_a_killed_run_leaves_expires(folder):
    killed = hold(folder)
    killed._released.set()  # As after SIGKILL: not renewed, not deleted.
    began = time.monotonic()
    with hold(folder):
        assert time.monotonic() - began >= lease.EXPIRY_SECONDS


def test_a_run_that_stood_still_learns_that_it_was_replaced(folder):
    lost = []
    first = hold(folder, lost)
    path = folder / "owner.json"
    path.write_text(json.dumps({"id": "another", "host": "elsewhere"}))
    wait_for(lambda: lost)
    assert "taken over by a run on elsewhere" in str(lost[0])
    first.close()
    assert path.exists()  # It is not ours any more.
    path.unlink()
    second = hold(folder, lost)
    path.unlink()
    wait_for(lambda: len(lost) == 2)
    assert "another run, which has ended" in str(lost[1])
    second.close()


def test_a_renewal_under_way_does_not_bring_a_released_lease_back(
    folder, monkeypatch
):
    held = hold(folder)
    reading, go_on = threading.Event(), threading.Event()
    read = held._read

    def slow():
        found = read()
        if threading.current_thread() is held._thread:
            reading.set()
            go_on.wait(10)
        return found

    monkeypatch.setattr(held, "_read", slow)
    assert reading.wait(10)
    threading.Timer(0.2, go_on.set).start()
    held.close()  # While the renewal has read, and is about to write.
    held._thread.join(10)
    assert not (folder / "owner.json").exists()


def test_an_error_while_a_run_is_ended_is_not_hidden(folder, monkeypatch):
    shown = []
    monkeypatch.setattr(threading, "excepthook", shown.append)

    def fail(error):
        raise ZeroDivisionError

    held = lease.Lease(folder / "owner.json", fail)
    (folder / "owner.json").unlink()
    wait_for(lambda: shown)
    assert shown[0].exc_type is ZeroDivisionError
    held.close()


def test_a_run_in_a_bucket_must_learn_that_it_was_replaced(folder):
    with pytest.raises(ValueError, match="on_lost"):
        layout.claim(folder, {}, {})


def test_a_bucket_that_fails_for_a_while_takes_nothing_away(folder, bucket):
    lost = []
    with hold(folder, lost):
        bucket.fault = lambda method, path: HTTPStatus.SERVICE_UNAVAILABLE
        time.sleep(0.2)
        bucket.fault = lambda method, path: None
        before = (folder / "owner.json").read_text()
        wait_for(lambda: (folder / "owner.json").read_text() != before)
    assert not lost


def test_claim_takes_a_lease_and_keeps_what_began(folder):
    config, identity = {"seed": 1}, {"classes": ["a"]}
    with layout.claim(folder, config, identity, pytest.fail):
        assert (folder / layout.LEASE).exists()
        assert layout.read_config(folder) == config
    assert not layout.has_checkpoint(folder)
    half = folder / layout.CHECKPOINTS / "3"
    (half / "state").write_text("arrays")
    assert not layout.has_checkpoint(folder)  # Not committed.
    (half / layout.COMMITTED).write_text("")
    assert layout.has_checkpoint(folder)
    with pytest.raises(UserError, match="seed: 1 -> 2"):
        layout.claim(folder, {"seed": 2}, identity, pytest.fail)
